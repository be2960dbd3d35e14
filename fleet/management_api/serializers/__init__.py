"""What goes over the wire, by domain."""

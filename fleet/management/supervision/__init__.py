"""One supervisor over the embedded system's processes. It imports no Django.

::

    guard        what the terminal sees; forwards signals; clears up behind the supervisor
    └─ supervisor    starts, watches, restarts and stops the children
       ├─ web        granian, with its worker process
       ├─ control    Celery worker, queue control
       ├─ tailor     Celery worker, queue tailor, with its sandboxed subprocesses
       └─ beat       Celery beat

Nothing is left behind, whichever process is killed with -9. The kernel kills the supervisor's
children with it (PR_SET_PDEATHSIG); what those leave behind falls to the guard
(PR_SET_CHILD_SUBREAPER), which ends it. If the guard is killed, the supervisor gets SIGTERM and
stops everything in order.
"""

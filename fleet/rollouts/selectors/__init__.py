"""Reads of rollouts: who is offered what, what the evidence is, and how far it has got."""

from fleet.rollouts.selectors.evidence import Standing, standing_of
from fleet.rollouts.selectors.latencies import reported_latencies
from fleet.rollouts.selectors.offers import Offer, generation_of, offers_for, why_not_yet
from fleet.rollouts.selectors.progress import (
    TrackProgress,
    assignments_of,
    assignments_of_device,
    decisions_of,
    progress,
    rollout,
    rollouts_of,
    tracks_of,
)

__all__ = [
    "Offer",
    "Standing",
    "TrackProgress",
    "assignments_of",
    "assignments_of_device",
    "decisions_of",
    "generation_of",
    "offers_for",
    "progress",
    "reported_latencies",
    "rollout",
    "rollouts_of",
    "standing_of",
    "tracks_of",
    "why_not_yet",
]

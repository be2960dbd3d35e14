"""Addresses of the device API, mounted at ``/api/device/v1/``."""

from __future__ import annotations

from django.urls import path, re_path

from fleet.device_api import views

app_name = "device_api"

urlpatterns = [
    path("nonce", views.nonce, name="nonce"),
    path("enroll", views.enroll, name="enroll"),
    path("token", views.token, name="token"),
    path("capabilities", views.capabilities, name="capabilities"),
    path("desired", views.desired, name="desired"),
    path("assignment", views.assignment, name="assignment"),
    path("reports", views.reports, name="reports"),
    path("metadata/<str:filename>", views.metadata, name="metadata"),
    path("targets/<path:filename>", views.target, name="target"),
    path("blobs/<str:sha256>", views.blob, name="blob"),
    re_path("", views.unknown, name="unknown"),
]

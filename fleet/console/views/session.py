"""Signing in and out."""

from __future__ import annotations

from django.contrib.auth.views import LoginView, LogoutView


class SignIn(LoginView):
    template_name = "console/login.html"
    redirect_authenticated_user = True


class SignOut(LogoutView):
    """By POST only, as Django has it."""

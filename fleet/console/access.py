"""Who may open a page or act: the console user's role, through the same scopes as the API's."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST, require_safe
from django_htmx.http import HttpResponseClientRedirect

from tenancy.actor import Actor
from tenancy.errors import Forbidden, Invalid, ProblemError, ScopeMissing
from tenancy.models import Tenant
from tenancy.scopes import scopes_of_role
from tenancy.selectors import membership_of

READ_ALL = ("models:read", "builds:read", "devices:read", "rollouts:read")
Handler = Callable[..., HttpResponse]


class ConsoleRequest(HttpRequest):
    """A request that :func:`page` or :func:`action` has let through."""

    tenant: Tenant
    actor: Actor
    role: str
    can: Permissions
    section: str


class Permissions:
    """``request.can.models_write`` in a template asks for the scope ``models:write``."""

    def __init__(self, scopes: frozenset[str]) -> None:
        self._scopes = scopes

    def __getitem__(self, name: str) -> bool:
        return name.replace("_", ":") in self._scopes

    def require(self, *scopes: str) -> None:
        """Raises ScopeMissing."""
        missing = sorted(set(scopes) - self._scopes)
        if missing:
            raise ScopeMissing(
                f"Your role lacks {', '.join(missing)}; ask an administrator of your tenant.", scopes=missing
            )


def signed_in(view: Handler) -> Handler:
    """Sends visitors to the login; a part that htmx asks for takes the whole page there."""
    guarded: Handler = login_required(view)

    @wraps(view)
    def wrapper(request: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.htmx and not request.user.is_authenticated:
            return HttpResponseClientRedirect(reverse("console:login"))
        return guarded(request, *args, **kwargs)

    return wrapper


def page(section: str, *scopes: str) -> Callable[[Handler], Handler]:
    """A page of ``section`` (its entry in the navigation); problems become an error page."""
    return lambda view: signed_in(require_safe(_in_section(view, section, scopes)))


def form_page(section: str, *scopes: str) -> Callable[[Handler], Handler]:
    """As :func:`page`, for a form that is shown by GET and sent by POST."""
    return lambda view: signed_in(_in_section(view, section, scopes))


def _in_section(view: Handler, section: str, scopes: tuple[str, ...]) -> Handler:
    @wraps(view)
    def wrapper(request: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        request.section = section
        try:
            _admit(request, scopes)
            return view(request, *args, **kwargs)
        except ProblemError as error:
            return problem_page(request, error)

    return wrapper


def action(*scopes: str) -> Callable[[Handler], Handler]:
    """A button: POST only; a problem is shown on the page that the button stands on."""

    def decorate(view: Handler) -> Handler:
        @wraps(view)
        def wrapper(request: Any, *args: Any, **kwargs: Any) -> HttpResponse:
            request.section = ""
            try:
                _admit(request, scopes)
            except ProblemError as error:
                return problem_page(request, error)
            try:
                return view(request, *args, **kwargs)
            except ProblemError as error:
                messages.error(request, error.detail or error.title)
                return redirect(_came_from(request))

        return signed_in(require_POST(wrapper))

    return decorate


def _admit(request: Any, scopes: tuple[str, ...]) -> None:
    membership = membership_of(request.user)
    if membership is None:
        raise Forbidden("This user belongs to no tenant; ask an administrator to add it.", code="no_tenant")
    request.tenant = membership.tenant
    request.role = membership.role
    request.actor = Actor(kind="user", name=request.user.get_username())
    request.can = Permissions(scopes_of_role(membership.role))
    request.can.require(*scopes)
    if "%00" in request.META.get("QUERY_STRING", ""):  # PostgreSQL refuses to compare texts with it
        raise Invalid("The address holds NUL. Open it without.", code="invalid_parameter")


def _came_from(request: HttpRequest) -> str:
    referer = request.headers.get("Referer", "")
    safe = url_has_allowed_host_and_scheme(
        referer, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    )
    return referer if safe else "console:fleet"


def problem_page(request: HttpRequest, error: ProblemError) -> HttpResponse:
    """The problem in words, with its status."""
    return render(request, "console/problem.html", {"problem": error}, status=error.status)

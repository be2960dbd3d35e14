"""What all views share: the caller, checked input, pages, and missing rows as 404."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar, cast

from django.db.models import Model, QuerySet
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer
from rest_framework.views import APIView

from fleet.management_api.authentication import Principal
from fleet.management_api.pagination import CreatedCursorPagination
from tenancy.actor import Actor
from tenancy.errors import Invalid, NotFound
from tenancy.models import App, Tenant
from tenancy.selectors import apps_of

Row = TypeVar("Row", bound=Model)


class ApiView(APIView):
    """A view with scopes per method, e.g. ``{"GET": "models:read", "POST": "models:write"}``."""

    scopes: ClassVar[dict[str, str | tuple[str, ...]]]
    ordering: ClassVar[tuple[str, ...]] = ("-created_at", "-id")
    pagination_class = CreatedCursorPagination  # read by the schema generator too

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if "%00" in request.META.get("QUERY_STRING", ""):  # PostgreSQL refuses to compare texts with it
            raise Invalid("A query parameter holds NUL. Send it without.", code="invalid_parameter")

    @property
    def caller(self) -> Principal:
        return cast(Principal, self.request.user)

    @property
    def tenant(self) -> Tenant:
        return self.caller.tenant

    @property
    def actor(self) -> Actor:
        return self.caller.actor

    def parsed(self, serializer: type[BaseSerializer[Any]]) -> dict[str, Any]:
        """The body, checked by ``serializer``."""
        checked = serializer(data=self.request.data)
        checked.is_valid(raise_exception=True)
        return cast(dict[str, Any], checked.validated_data)

    def page(self, rows: QuerySet[Any], serializer: type[BaseSerializer[Any]]) -> Response:
        """One page of ``rows`` in the view's order."""
        paginator = CreatedCursorPagination()
        page = paginator.paginate_queryset(rows.order_by(*self.ordering), self.request, view=self)
        return paginator.get_paginated_response(serializer(page, many=True).data)

    def app(self, slug: str | None) -> App:
        """The app that is named, the token's own, or the tenant's only one.

        Raises:
            NotFound: no such app.
            Invalid: ``app_required``, if there are several and none is named.
        """
        if slug is None and self.caller.app is not None:
            return self.caller.app
        apps = apps_of(self.tenant)
        if slug is not None:
            return found(apps.filter(slug=slug), f"app {slug!r}")
        several = list(apps[:2])
        if len(several) != 1:
            raise Invalid("Name the app that this belongs to in `app`.", code="app_required")
        return several[0]


def found(rows: QuerySet[Row], what: str) -> Row:
    """The only row of ``rows``.

    Raises:
        NotFound: there is none in the caller's tenant.
    """
    row = rows.first()
    if row is None:
        raise NotFound(f"There is no {what}.")
    return row


def choice(request: Request, name: str, choices: list[str]) -> str | None:
    """A query parameter out of ``choices``, or None if it is not given.

    Raises:
        Invalid: ``invalid_parameter``.
    """
    value = request.query_params.get(name)
    if value and value not in choices:
        raise Invalid(f"`{name}` takes one of {', '.join(choices)}.", code="invalid_parameter")
    return value or None

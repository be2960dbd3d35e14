"""The console: every page for every role, empty and full; mutations by POST, CSRF and role alone."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from django.contrib.staticfiles import finders
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import get_resolver, reverse

from fleet.console import urls
from fleet.console.forms import RolloutForm
from fleet.console.templatetags.figures import ms
from fleet.devices.models import Device, DeviceClass, ProvisioningKey
from fleet.devices.services import declare_figure, store_capabilities
from fleet.rollouts.decision import Policy, parse_policy
from fleet.rollouts.models import Assignment, AssignmentEvent, Rollout, RolloutTrack
from fleet.rollouts.services import create_rollout, start_rollout
from fleet.telemetry.models import InferenceRow
from models_registry.models import Alias, Build, Model, ModelVersion, Release, Tailoring, VersionFile
from models_registry.services.builds import apply_build_result, request_builds
from models_registry.services.fronts import draw_fronts
from models_registry.services.leases import apply_progress
from models_registry.services.releases import create_release, publish_release
from models_registry.services.signing import initialise_repository
from models_registry.services.versions import apply_inspect_result, put_single
from quantize_worker.contract import InspectResult, Progress
from tenancy.models import ApiToken, App, Tenant
from tenancy.services import create_user
from tests.factories import ACTOR, capability_report, make_class, make_devices, make_release
from tests.integration.test_builds import FACTS, built, target

pytestmark = pytest.mark.django_db(databases="__all__")

PASSWORD = "correct horse battery"
LISTS = ("fleet", "devices", "classes", "models", "rollouts", "access", "audit")
TEMPLATES = Path(urls.__file__).parent / "templates" / "console"


def signed_in(tenant: Tenant, role: str) -> Client:
    create_user(tenant=tenant, username=role, password=PASSWORD, role=role)
    client = Client()
    assert client.login(username=role, password=PASSWORD)
    return client


@pytest.fixture
def admin(tenant: Tenant) -> Client:
    return signed_in(tenant, "admin")


@pytest.mark.parametrize(
    "address", ["/devices?search=%00", "/devices?class=a%00b", "/models?after=%00", "/audit?action=%00"]
)
def test_nul_in_an_address_is_refused(admin: Client, address: str) -> None:
    assert admin.get(address).status_code == 422


def test_a_rollout_whose_classes_are_all_paused_asks_for_attention(
    admin: Client, app: App, tenant: Tenant
) -> None:
    make_class(tenant, "entry")
    create_rollout(release=make_release(app, ["entry"]), name="first", actor=ACTOR)
    RolloutTrack.objects.update(state="paused", reason="2 of 2 devices failed their self-test.")
    for state, shown in {"running": True, "paused": True, "cancelled": False}.items():
        Rollout.objects.update(state=state)
        assert (b"2 of 2 devices failed" in admin.get("/").content) is shown


@pytest.fixture
def viewer(tenant: Tenant) -> Client:
    return signed_in(tenant, "viewer")


@pytest.fixture
def world(app: App, tenant: Tenant) -> dict[str, Any]:
    """One of everything, made by the services, with the worker's answers given by hand."""
    initialise_repository(tenant=tenant)
    make_class(tenant, "entry", emulated=True)
    device = make_devices(
        tenant, 1, class_name="entry", emulated=True, soc="test-soc-1", accelerators=["cpu"]
    )[0]
    real = capability_report().accelerators[0]
    npu = msgspec.structs.replace(real, name="npu", kind="npu", emulated=True)
    store_capabilities(device=device, report=capability_report(accelerators=[real, npu]))
    declare_figure(
        tenant=tenant,
        soc="test-soc-1",
        accelerator="cpu",
        metric="int8_gops",
        value=123.4,
        source="s",
        actor=ACTOR,
    )
    model = Model.objects.create(tenant=tenant, app=app, name="minilm", description="embeddings")
    version = put_single(model=model, data=[b"model"], size=5, actor=ACTOR)
    apply_inspect_result(
        result=InspectResult(version=str(version.pk), attempt=1, status="ready", facts=FACTS)
    )
    version.refresh_from_db()
    request_builds(version=version, targets=[target("entry", emulated=True)], actor=ACTOR)
    build = Build.objects.get()
    apply_build_result(result=built(build))
    release = create_release(version=version, actor=ACTOR)
    publish_release(release_id=release.pk)
    release.refresh_from_db()
    rollout = start_rollout(rollout=create_rollout(release=release, name="first", actor=ACTOR), actor=ACTOR)
    assignment = Assignment.objects.create(
        tenant=tenant,
        device=device,
        rollout=rollout,
        class_name="entry",
        version=version,
        build=build,
        state="failed",
        failure="output_mismatch",
        self_test={"passed": False, "min_cosine": 0.4, "latency_p50_ms": 8.0, "emulated": True},
        changed_at=datetime.now(UTC),
    )
    AssignmentEvent.objects.create(tenant=tenant, assignment=assignment, state="failed", at=datetime.now(UTC))
    draw_fronts()
    tailoring = Tailoring.objects.get()
    return {
        "device": device, "version": version, "build": build, "tailoring": tailoring, "release": release,
        "rollout": rollout,
    }  # fmt: skip


def addresses(world: dict[str, Any]) -> list[str]:
    """Every page there is."""
    ids = {name: [row.pk] for name, row in world.items()}
    return [
        *(reverse(f"console:{name}") for name in LISTS),
        reverse("console:device", args=ids["device"]),
        reverse("console:model", args=["minilm"]),
        *(
            reverse(f"console:{name}", args=ids["version"])
            for name in ("version", "version-live", "version-preview")
        ),
        *(
            reverse(f"console:{name}", args=ids["tailoring"])
            for name in ("tailoring", "tailoring-live", "tailoring-layers")
        ),
        *(
            reverse(f"console:{name}", args=ids["build"])
            for name in ("build", "build-live", "build-layers", "build-latency")
        ),
        *(reverse(f"console:{name}", args=ids["rollout"]) for name in ("rollout", "rollout-live")),
        reverse("console:trust-root"),
    ]


FORMS = ("class-create", "rollout-create")


class TestPages:
    def test_a_visitor_is_asked_to_sign_in(self, db: None) -> None:
        for name in LISTS:
            response = Client().get(reverse(f"console:{name}"))
            assert response.status_code == 302
            assert response["Location"].startswith("/login?next=")
        assert b"Sign in" in Client().get("/login").content

    def test_a_live_part_takes_a_visitor_to_the_login(self, world: dict[str, Any]) -> None:
        address = reverse("console:rollout-live", args=[world["rollout"].pk])
        assert Client().get(address, headers={"HX-Request": "true"})["HX-Redirect"] == "/login"

    def test_unknown_pages_look_like_ours(self, db: None) -> None:
        response = Client().get("/nowhere")
        assert response.status_code == 404
        assert b"There is no such page" in response.content

    def test_figures_say_what_they_are_a_share_of(self, world: dict[str, Any], tenant: Tenant) -> None:
        client = signed_in(tenant, "viewer")
        build, version = Build.objects.get(pk=world["build"].pk), world["version"]
        assert build.quality is not None
        shown = client.get(reverse("console:build", args=[build.pk])).content.decode()
        assert "cosine on 100 samples" in shown
        accuracy = {"metric": "accuracy", "accuracy": 0.1333, "source_accuracy": 0.1333, "value": 1.0}
        Build.objects.filter(pk=build.pk).update(quality=build.quality | accuracy)
        shown = client.get(reverse("console:build", args=[build.pk])).content.decode()
        assert "share of FP32&#x27;s accuracy" in shown or "share of FP32's accuracy" in shown
        assert "(0.133 of 0.133) on 100 samples" in shown
        facts = client.get(reverse("console:version", args=[version.pk])).content.decode()
        assert "100 of 300 samples measured" in facts

    def test_a_tailoring_explains_itself(self, admin: Client, world: dict[str, Any]) -> None:
        page = admin.get(reverse("console:tailoring", args=[world["tailoring"].pk])).content.decode()
        assert page.count("<svg class=") >= 2
        for part in ("front-line", "mark-chosen", "mark-planned", "floor 0.9", "No budget kept it"):
            assert part in page
        assert "Smallest over the floor 0.9 for class entry" in page
        layers = admin.get(reverse("console:tailoring-layers", args=[world["tailoring"].pk])).content.decode()
        assert layers.count("/encoder/layer.") >= 20
        assert "int8-dynamic: saves 3.0 MB" in layers
        address = reverse("console:build-layers", args=[world["build"].pk])
        assert b"No layer matches" in admin.get(address, {"search": "nothing"}).content
        assert admin.get(address, {"format": "int8-dynamic", "from": "x"}).context["page"].found == 20

    def test_what_was_predicted_stands_beside_what_was_measured(
        self, admin: Client, world: dict[str, Any]
    ) -> None:
        figures = admin.get(reverse("console:build", args=[world["build"].pk])).context["figures"]
        size = next(figure for figure in figures if figure.label == "Size")
        assert (size.predicted, size.measured, size.difference) == ("20.3 MB", "10.5 MB", "-48.4 %")

    def test_a_front_that_is_not_drawn_yet_is_asked_for_again(
        self, admin: Client, world: dict[str, Any]
    ) -> None:
        address = reverse("console:tailoring", args=[world["tailoring"].pk])
        assert b"every 2s" not in admin.get(address).content
        Tailoring.objects.update(front=None)
        assert b"every 2s" in admin.get(address).content
        assert b"Being drawn" in admin.get(address).content
        assert draw_fronts() == 1
        live = reverse("console:tailoring-live", args=[world["tailoring"].pk])
        assert admin.get(live)["HX-Refresh"] == "true"

    def test_unverified_builds_say_so(self, admin: Client, world: dict[str, Any]) -> None:
        for name, row in (("build", "build"), ("tailoring", "tailoring"), ("version", "version")):
            address = reverse(f"console:{name}", args=[world[row].pk])
            Build.objects.update(unverified=False)
            assert b"badge-unverified" not in admin.get(address).content
            Build.objects.update(unverified=True)
            assert b"badge-unverified" in admin.get(address).content

    def test_plans_are_previewed_without_a_trace(self, admin: Client, world: dict[str, Any]) -> None:
        before = Tailoring.objects.values().get()
        page = admin.get(reverse("console:version-preview", args=[world["version"].pk]))
        assert b"Plans, without building" in page.content
        assert [each.target.name for each in page.context["planned"]] == ["entry"]
        assert Tailoring.objects.values().get() == before
        assert Build.objects.count() == 1

    def test_a_check_shows_step_worker_and_batches_and_can_be_cancelled(
        self, admin: Client, app: App
    ) -> None:
        model = Model.objects.create(tenant=app.tenant, app=app, name="large")
        version = put_single(model=model, data=[b"model"], size=5, actor=ACTOR)
        progress = Progress(
            subject=str(version.pk),
            subject_kind="version",
            attempt=1,
            step="calibrate",
            share=0.4,
            worker="w7",
        )
        address = reverse("console:version", args=[version.pk])
        assert b"of queue tailor.small" in admin.get(address).content
        apply_progress(progress=progress)
        page = admin.get(address).content.decode()
        assert "Calibrate" in page
        assert "on w7" in page
        assert "began <time" in page
        layers = [layer.name for layer in FACTS.layers]
        apply_inspect_result(
            result=InspectResult(
                version=str(version.pk),
                attempt=1,
                status="ready",
                facts=FACTS,
                batches=[layers[:9], layers[9:]],
            )
        )
        assert b"0 of 2 batches of layers are ready" in admin.get(address).content
        live = reverse("console:version-live", args=[version.pk]) + "?was=checking"
        assert not admin.get(live).has_header("HX-Refresh")
        admin.post(reverse("console:version-cancel", args=[version.pk]))
        page = admin.get(address).content.decode()
        assert "Check cancelled" in page
        assert "Check again" in page
        assert admin.get(live)["HX-Refresh"] == "true"
        assert b"Check cancelled" not in admin.get("/").content  # a person's wish needs no attention

    def test_signing_in_and_out(self, tenant: Tenant) -> None:
        create_user(tenant=tenant, username="ada", password=PASSWORD, role="admin")
        client = Client()
        wrong = client.post("/login", {"username": "ada", "password": "wrong"})
        assert b"do not match" in wrong.content
        right = client.post("/login", {"username": "ada", "password": PASSWORD, "next": "/devices"})
        assert right["Location"] == "/devices"
        assert client.post("/logout").status_code == 302
        assert client.get("/").status_code == 302

    @pytest.mark.parametrize("role", ["admin", "operator", "viewer"])
    def test_every_page_renders_for_every_role(
        self, world: dict[str, Any], tenant: Tenant, role: str
    ) -> None:
        client = signed_in(tenant, role)
        for address in addresses(world):
            assert client.get(address).status_code == 200, address
        for name in FORMS:
            expected = 403 if role == "viewer" else 200
            assert client.get(reverse(f"console:{name}")).status_code == expected, name

    def test_every_page_renders_when_there_is_nothing(self, admin: Client) -> None:
        for name in (*LISTS, *FORMS):
            assert admin.get(reverse(f"console:{name}")).status_code == 200, name

    def test_a_user_of_no_tenant_is_told_so(self, db: None, django_user_model: Any) -> None:
        client = Client()
        client.force_login(django_user_model.objects.create_user("lost"))
        response = client.get("/")
        assert response.status_code == 403
        assert b"belongs to no tenant" in response.content

    def test_nothing_of_another_tenant_is_shown(self, world: dict[str, Any], other_tenant: Tenant) -> None:
        rival = signed_in(other_tenant, "admin")
        for address in addresses(world)[len(LISTS) :]:
            assert rival.get(address).status_code == 404, address
        for name in LISTS:
            assert b"minilm" not in rival.get(reverse(f"console:{name}")).content.replace(
                b'"name": "minilm"', b""
            )

    def test_emulated_hardware_is_labelled(self, admin: Client, world: dict[str, Any]) -> None:
        pages = [address for address in addresses(world) if not address.endswith(("latency", "root.json"))]
        silent = [reverse(f"console:{name}") for name in ("models", "rollouts", "access", "audit")]
        silent.append(reverse("console:model", args=["minilm"]))
        for address in pages:
            if address not in silent:
                assert b"badge-emulated" in admin.get(address).content, address

    def test_declared_figures_stand_beside_measured_ones(self, admin: Client, world: dict[str, Any]) -> None:
        text = admin.get(reverse("console:device", args=[world["device"].pk])).content.decode()
        assert "declared 123.4" in text

    def test_states_reasons_and_why_not_yet_are_in_words(self, admin: Client, world: dict[str, Any]) -> None:
        RolloutTrack.objects.update(state="paused", reason="2 of 4 devices failed their self-test.")
        Build.objects.update(state="failed", error_message="No kernel for Foo.")
        front = admin.get("/").content.decode()
        assert "2 of 4 devices failed their self-test." in front
        assert "No kernel for Foo." in front
        page = admin.get(reverse("console:rollout", args=[world["rollout"].pk])).content.decode()
        assert "2 of 4 devices failed their self-test." in page
        assert "Resume this class" in page
        device = admin.get(reverse("console:device", args=[world["device"].pk])).content.decode()
        assert "output mismatch" in device

    def test_the_newest_version_shows_its_state_and_a_refused_one_asks_for_attention(
        self, admin: Client, world: dict[str, Any]
    ) -> None:
        old = world["version"]
        refused = ModelVersion.objects.create(
            tenant=old.tenant,
            model=old.model,
            number=2,
            state="refused",
            refusal_message="Export it as ONNX.",
        )
        assert re.search(r"v2 <span[^>]*>(<span[^>]*></span>)refused", admin.get("/models").content.decode())
        assert b"Export it as ONNX." in admin.get("/").content
        ModelVersion.objects.filter(pk=refused.pk).update(created_at=datetime.now(UTC) - timedelta(days=8))
        assert b"Export it as ONNX." not in admin.get("/").content
        ModelVersion.objects.filter(pk=refused.pk).update(created_at=datetime.now(UTC))
        ModelVersion.objects.create(tenant=old.tenant, model=old.model, number=3, state="ready")
        assert b"Export it as ONNX." not in admin.get("/").content

    def test_a_device_runs_a_model_once(self, admin: Client, world: dict[str, Any]) -> None:
        device, first = world["device"], world["rollout"]
        release = world["release"]
        second = start_rollout(
            rollout=create_rollout(release=release, name="second", actor=ACTOR), actor=ACTOR
        )
        (row,) = Assignment.objects.all()
        Assignment.objects.update(state="active", failure="")
        row.pk, row.rollout, row.state, row.failure = None, second, "active", ""
        row.save(force_insert=True)
        address = reverse("console:device", args=[device.pk])

        def shown() -> list[str]:
            return [row.rollout.name for row in admin.get(address).context["assignments"]]

        assert shown() == ["second"]
        Assignment.objects.filter(rollout=second).update(state="failed")
        assert shown() == ["second", "first"]
        Assignment.objects.filter(rollout=second).update(state="active")
        Rollout.objects.filter(pk=second.pk).update(state="rolled_back")
        assert shown() == ["first"]
        assert first.name in admin.get(address).content.decode()

    def test_the_api_page_knows_who_is_signed_in(self, admin: Client) -> None:
        assert b"console/docs.js" in admin.get("/api/docs").content

    def test_a_draft_says_how_many_devices_match(self, admin: Client, world: dict[str, Any]) -> None:
        def draft(filter: str) -> str:
            row = create_rollout(release=world["release"], name="next", filter=filter, actor=ACTOR)
            return admin.get(reverse("console:rollout", args=[row.pk])).content.decode()

        assert "No device matches now. Check the filter" in draft("class:nope")
        page = draft("class:entry")
        assert "1 accepted device matches now." in page
        assert "1 matching device<" in page

    def test_an_impossible_class_says_why(self, admin: Client, world: dict[str, Any]) -> None:
        Tailoring.objects.update(state="impossible", reason="memory: 131 MB needed, 120 MB there", build=None)
        page = admin.get(reverse("console:version", args=[world["version"].pk]))
        assert b"memory: 131 MB needed, 120 MB there" in page.content

    def test_a_refused_version_says_what_to_do(self, admin: Client, world: dict[str, Any]) -> None:
        ModelVersion.objects.update(
            state="refused", refusal_code="not_onnx", refusal_message="Export the model as ONNX."
        )
        page = admin.get(reverse("console:version", args=[world["version"].pk]))
        assert b"Export the model as ONNX." in page.content

    def test_a_wrong_filter_is_pointed_at(self, admin: Client) -> None:
        page = admin.get("/devices", {"filter": "ram_mb >> 3"}).content.decode()
        assert "ram_mb &gt;&gt; 3\n        ^" in page

    def test_the_plot_gets_its_series(self, admin: Client, world: dict[str, Any], tenant: Tenant) -> None:
        build = world["build"]
        empty = admin.get(reverse("console:build", args=[build.pk])).content
        assert b"Nothing measured yet" in empty
        InferenceRow.objects.create(
            tenant_id=tenant.pk,
            device_id=world["device"].pk,
            build_id=build.pk,
            class_name="entry",
            at=datetime.now(UTC),
            window_s=10,
            provider="CPUExecutionProvider",
            emulated=True,
            requests=5,
            errors=0,
            latency_buckets=[0] * 10 + [5] + [0] * 23,
            latency_sum_ms=40,
        )
        data = admin.get(reverse("console:build-latency", args=[build.pk])).json()
        assert len(data["at"]) == 1
        start, end = data["window"]
        assert start + 3600 <= end
        assert start <= data["at"][0] <= end
        assert [series["label"] for series in data["series"]] == ["p50", "p95"]
        assert b"data-plot" in admin.get(reverse("console:build", args=[build.pk])).content

    def test_live_parts_stop_asking_when_all_is_settled(self, admin: Client, world: dict[str, Any]) -> None:
        address = reverse("console:version-live", args=[world["version"].pk])
        assert b"every 2s" not in admin.get(address).content
        Tailoring.objects.update(state="building")
        assert b"every 2s" in admin.get(address).content
        ended = admin.get(reverse("console:build-live", args=[world["build"].pk]))
        assert ended["HX-Refresh"] == "true"


class TestQueries:
    @pytest.mark.parametrize("name", LISTS)
    def test_lists_do_not_grow_with_their_rows(
        self,
        admin: Client,
        app: App,
        tenant: Tenant,
        name: str,
        django_assert_max_num_queries: Callable[..., Any],
    ) -> None:
        for number in range(1, 9):
            release = make_release(app, ["entry", "mid"], number=number)
            make_class(tenant, f"c{number}", filter="tag:none")
            make_devices(tenant, 2, class_name=f"c{number}")
            create_rollout(release=release, name=f"r{number}", actor=ACTOR)
        with django_assert_max_num_queries(26 if name == "fleet" else 13):
            assert admin.get(reverse(f"console:{name}")).status_code == 200

    def test_devices_come_in_pages_by_key(self, admin: Client, tenant: Tenant) -> None:
        make_devices(tenant, 60, class_name="entry")
        first = admin.get("/devices")
        second = admin.get("/devices" + first.context["page"].following)
        shown = [device.pk for page in (first, second) for device in page.context["page"].rows]
        assert len(set(shown)) == len(shown) == 60
        assert not second.context["page"].following


MUTATIONS = {
    "device-decide": lambda w: [w["device"].pk, "decommission"],
    "class-delete": lambda w: ["entry"],
    "version-build": lambda w: [w["version"].pk],
    "version-release": lambda w: [w["version"].pk],
    "version-alias": lambda w: [w["version"].pk],
    "version-discard": lambda w: [w["version"].pk],
    "version-recheck": lambda w: [w["version"].pk],
    "version-cancel": lambda w: [w["version"].pk],
    "release-retry": lambda w: [w["release"].pk],
    "build-cancel": lambda w: [w["build"].pk],
    "build-retry": lambda w: [w["build"].pk],
    "rollout-steer": lambda w: [w["rollout"].pk, "pause"],
    "rollout-delete": lambda w: [w["rollout"].pk],
    "track-resume": lambda w: [w["rollout"].pk, "entry"],
    "token-revoke": lambda w: [w["device"].pk],
    "key-revoke": lambda w: [w["device"].pk],
}


class TestMutations:
    def test_the_list_of_mutations_is_complete(self) -> None:
        names = {name for name in get_resolver("fleet.console.urls").reverse_dict if isinstance(name, str)}
        pages = {*LISTS, *FORMS, "login", "logout", "device", "model", "class-edit", "trust-root"}
        live = ("version", "build", "rollout", "tailoring")
        pages |= {f"{kind}{part}" for kind in live for part in ("", "-live")}
        pages |= {"build-latency", "build-layers", "tailoring-layers", "version-preview"}
        assert names - pages == set(MUTATIONS)

    @pytest.mark.parametrize("name", sorted(MUTATIONS))
    def test_post_csrf_and_role_are_needed(self, world: dict[str, Any], tenant: Tenant, name: str) -> None:
        address = reverse(f"console:{name}", args=MUTATIONS[name](world))
        admin, viewer = signed_in(tenant, "admin"), signed_in(tenant, "viewer")
        assert admin.get(address).status_code == 405
        assert viewer.post(address).status_code == 403
        strict = Client(enforce_csrf_checks=True)
        strict.login(username="admin", password=PASSWORD)
        assert strict.post(address).status_code == 403
        assert Client().post(address)["Location"].startswith("/login")
        assert admin.post(address).status_code == 302  # done, or refused with a message

    def test_forms_are_refused_to_viewers(self, viewer: Client, world: dict[str, Any]) -> None:
        assert viewer.post("/models", {"name": "new", "app": "search"}).status_code == 403
        assert viewer.post("/models/minilm", {}).status_code == 403
        assert viewer.post("/classes/new", {}).status_code == 403
        for kind, fields in (
            ("token", {"name": "t", "app": "search", "scopes": "models:read"}),
            ("key", {"name": "k"}),
            ("app", {"slug": "a", "name": "A"}),
        ):
            assert viewer.post("/access", {"kind": kind, **fields}).status_code in (200, 403)
        assert not ApiToken.objects.exists()
        assert not ProvisioningKey.objects.exists()
        assert App.objects.count() == 1

    def test_a_refusal_is_shown_where_the_button_was(self, admin: Client, world: dict[str, Any]) -> None:
        page = reverse("console:build", args=[world["build"].pk])
        response = admin.post(
            reverse("console:build-cancel", args=[world["build"].pk]),
            headers={"Referer": f"http://testserver{page}"},
            follow=True,
        )
        assert response.redirect_chain[0][0].endswith(page)
        assert b"nothing to cancel" in response.content
        elsewhere = admin.post(
            reverse("console:build-cancel", args=[world["build"].pk]),
            headers={"Referer": "http://evil.test/"},
        )
        assert elsewhere["Location"] == "/"

    def test_a_class_is_made_and_changed(self, admin: Client) -> None:
        fields = {
            "name": "mid",
            "title": "Mid-range",
            "filter": "ram_mb >= 6000",
            "accelerator": "cpu",
            "execution_provider": "CPUExecutionProvider",
            "precisions": "int8-dynamic, fp32",
            "memory_mb": "200",
            "storage_mb": "300",
            "quality_floor": "0.98",
        }
        assert admin.post("/classes/new", fields).status_code == 302
        row = DeviceClass.objects.get(current=True)
        assert (row.memory_bytes, row.precisions) == (200_000_000, ["int8-dynamic", "fp32"])
        wrong = admin.post("/classes/mid/edit", {**fields, "filter": "ram_mb >="})
        assert b"The filter ends too early" in wrong.content
        assert admin.post("/classes/mid/edit", {**fields, "quality_floor": "0.9"}).status_code == 302
        assert DeviceClass.objects.get(current=True).version == 2
        again = admin.post("/classes/new", fields)
        assert b"There is a class of this name already" in again.content

    def test_an_edit_keeps_what_was_set_over_the_api(self, admin: Client, tenant: Tenant) -> None:
        make_class(tenant, "mid", memory_bytes=12_345_678, storage_bytes=500_001, energy_mwh=0.5)
        shown = admin.get("/classes/mid/edit").context["form"]
        fields = {name: value for name in shown.fields if (value := shown[name].value()) not in (None, False)}
        assert admin.post("/classes/mid/edit", {**fields, "title": "Other"}).status_code == 302
        row = DeviceClass.objects.get(current=True)
        assert (row.title, row.memory_bytes, row.storage_bytes) == ("Other", 12_345_678, 500_001)
        assert row.energy_mwh == 0.5

    def test_a_model_is_made_and_uploaded(self, admin: Client, app: App) -> None:
        assert admin.post("/models", {"name": "minilm", "app": "search"})["Location"] == "/models/minilm"
        files = {
            "model": SimpleUploadedFile("any-name.onnx", b"model bytes"),
            "evaluation": SimpleUploadedFile("set.npz", io.BytesIO(b"samples").read()),
        }
        response = admin.post("/models/minilm", files)
        version = ModelVersion.objects.get()
        assert response["Location"] == reverse("console:version", args=[version.pk])
        assert version.state == "checking"
        paths = VersionFile.objects.filter(complete=True).values_list("role", "path")
        assert set(paths) == {("model", "model.onnx"), ("evaluation", "evaluation.npz")}
        assert b"This field is required" in admin.post("/models/minilm", {}).content
        again = admin.post("/models", {"name": "minilm", "app": "search"})
        assert b"There is a model" in again.content

    def test_several_files_make_one_model(self, admin: Client, app: App) -> None:
        admin.post("/models", {"name": "minilm", "app": "search"})
        names = ["config.json", "model.safetensors", "tokenizer.json"]
        files = [SimpleUploadedFile(name, name.encode()) for name in names]
        admin.post("/models/minilm", {"model": files})
        assert sorted(VersionFile.objects.values_list("path", flat=True)) == names
        assert set(VersionFile.objects.values_list("role", flat=True)) == {"model"}
        files = [SimpleUploadedFile(name, name.encode()) for name in ("graph.onnx", "graph.onnx.data")]
        admin.post("/models/minilm", {"model": files})
        paths = VersionFile.objects.filter(version__number=2).values_list("path", flat=True)
        assert sorted(paths) == ["graph.onnx", "graph.onnx.data"]
        refused = admin.post("/models/minilm", {"model": SimpleUploadedFile("model.safetensors", b"x")})
        assert b"config.json and *.safetensors" in refused.content
        assert ModelVersion.objects.count() == 2

    def test_from_tailoring_to_rollout(self, admin: Client, world: dict[str, Any]) -> None:
        version, release = world["version"], world["release"]
        admin.post(reverse("console:version-alias", args=[version.pk]), {"name": "champion"})
        assert Alias.objects.get().version == version
        admin.post(reverse("console:version-release", args=[version.pk]))
        assert Release.objects.count() == 2
        form = {
            "name": "second",
            "release": str(release.pk),
            "filter": "tag:beta",
            "groups_percent": "25, 100",
            "minimum_per_group": "2",
            "device_timeout_h": "2",
            "success_percent": "90",
            "failure_percent": "10",
            "soak_min": "5",
        }
        wrong = admin.post("/rollouts/new", {**form, "groups_percent": "25, 50"})
        assert b"must be 1.0" in wrong.content
        assert b"column 4" in admin.post("/rollouts/new", {**form, "filter": "tag"}).content
        admin.post("/rollouts/new", {**form, "filter": "class:entry"})
        rollout = Rollout.objects.get(name="second")
        policy = parse_policy(rollout.policy)
        assert (policy.groups, policy.soak_s, policy.device_timeout_s) == ((0.25, 1.0), 300.0, 7200.0)
        admin.post(reverse("console:rollout-steer", args=[rollout.pk, "start"]))
        rollout.refresh_from_db()
        assert rollout.state == "running"

    def test_the_rollout_forms_defaults_are_the_policys(self) -> None:
        form = RolloutForm(releases=[])
        fields = {
            name: str(field.initial) for name, field in form.fields.items() if field.initial is not None
        }
        bound = RolloutForm(fields | {"name": "x"}, releases=[])
        bound.is_valid()
        assert parse_policy(bound.policy()) == Policy()

    def test_a_secret_is_shown_once(self, admin: Client, app: App) -> None:
        shown = admin.post(
            "/access",
            {"kind": "token", "name": "ci", "app": "search", "scopes": ["models:read", "models:write"]},
        )
        token = ApiToken.objects.get()
        plaintext = re.search(rf"pf_{token.prefix}_[\w-]+", shown.content.decode())
        assert plaintext
        assert "no-store" in shown["Cache-Control"]
        assert plaintext.group() not in admin.get("/access").content.decode()
        key = admin.post("/access", {"kind": "key", "name": "line", "accept": "on", "tags": "beta, lab"})
        assert "pfk_" in key.content.decode()
        assert ProvisioningKey.objects.get().tags == ["beta", "lab"]
        admin.post(reverse("console:token-revoke", args=[token.pk]))
        token.refresh_from_db()
        assert token.revoked_at

    def test_devices_are_accepted(self, admin: Client, world: dict[str, Any]) -> None:
        Device.objects.update(state="pending")
        assert b"1 device waits" in admin.get("/").content
        admin.post(reverse("console:device-decide", args=[world["device"].pk, "accept"]))
        assert Device.objects.get().state == "accepted"


class TestDelivery:
    def test_the_policy_allows_nothing_inline(self, admin: Client, world: dict[str, Any]) -> None:
        for address in addresses(world):
            response = admin.get(address)
            assert "unsafe" not in response["Content-Security-Policy"]
            text = response.content.decode()
            assert not re.search(r"<script(?![^>]*\ssrc=)", text), address
            assert not re.search(r"\sstyle=|\son\w+=", text), address

    def test_everything_a_page_needs_is_here(self, admin: Client, world: dict[str, Any]) -> None:
        for address in (reverse("console:build", args=[world["build"].pk]), "/login"):
            text = admin.get(address, follow=True).content.decode()
            assets = re.findall(r'(?:src|href)="(/static/[^"]+|https?://[^"]+)"', text)
            assert assets
            for asset in assets:
                assert finders.find(asset.removeprefix("/static/")), asset

    @pytest.mark.parametrize(
        ("value", "text"), [(0.004, "<0.01 ms"), (0.02, "0.02 ms"), (12.34, "12.3 ms"), (250.4, "250 ms")]
    )
    def test_short_times_are_not_rounded_to_nothing(self, value: float, text: str) -> None:
        assert ms(value) == text

    def test_templates_stay_short(self) -> None:
        lengths = sorted(len(path.read_text().splitlines()) for path in TEMPLATES.glob("*.html"))
        assert lengths[len(lengths) // 2] < 60

    def test_vendored_files_are_as_recorded(self) -> None:
        import hashlib

        folder = TEMPLATES.parents[1] / "static" / "vendor"
        recorded = dict(
            re.findall(r"`([^`]+/[^`]+)` \| `([0-9a-f]{64})`", (folder / "VENDORED.md").read_text())
        )
        files = [path for path in folder.glob("*/*") if "LICENSE" not in path.name]
        assert {str(path.relative_to(folder)) for path in files} == set(recorded)
        for path in files:
            assert path.stat().st_size < 1_000_000
            assert hashlib.sha256(path.read_bytes()).hexdigest() == recorded[str(path.relative_to(folder))]

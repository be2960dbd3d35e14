"""Classes to plans: the devices' speed, reported latencies, previews, planning anew, fronts."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from device_agent.protocol.manifest import decode_manifest
from fleet.devices.models import AcceleratorFigure, Device, DeviceClass
from fleet.devices.services import store_capabilities
from fleet.devices.speed import speeds_of
from fleet.rollouts.models import Assignment
from fleet.rollouts.selectors import reported_latencies
from fleet.rollouts.services import create_rollout
from fleet.tailoring import classes_named, preview, tailor, targets_of
from fleet.telemetry.models import InferenceRow
from models_registry import planning
from models_registry.errors import WrongState
from models_registry.models import Build, Model, ModelVersion, Tailoring
from models_registry.services.builds import apply_build_result, request_builds
from models_registry.services.fronts import draw_fronts
from models_registry.services.inspections import apply_inspect_result
from models_registry.services.versions import put_single
from quantize_worker.contract import InspectResult, Target, WorkerSpeed
from tenancy.errors import Conflict, NotFound
from tenancy.models import App, Tenant
from tests.factories import ACTOR, capability_report, make_class, make_devices, make_facts, make_release
from tests.integration.test_builds import built, target

pytestmark = pytest.mark.django_db(databases="__all__")
FACTS = make_facts()


def ready(app: App, name: str = "minilm", **facts: Any) -> ModelVersion:
    model = Model.objects.create(tenant=app.tenant, app=app, name=name)
    version = put_single(model=model, data=[b"graph"], size=5, actor=ACTOR)
    result = InspectResult(version=str(version.pk), attempt=1, status="ready", facts=make_facts(**facts))
    assert apply_inspect_result(result=result)
    version.refresh_from_db()
    return version


@pytest.fixture
def version(app: App) -> ModelVersion:
    return ready(app)


@pytest.fixture
def entry(tenant: Tenant) -> DeviceClass:
    return make_class(tenant, "entry", precisions=["int4", "int8"], quality_floor=0.98)


_SERIAL = itertools.count()


def device(
    tenant: Tenant, gflops: float | None, *, emulated: bool = False, state: str = "accepted"
) -> Device:
    """A device of class entry that has measured itself."""
    (row,) = make_devices(tenant, 1, class_name="", ram_mb=3000)
    Device.objects.filter(pk=row.pk).update(state=state)
    report = capability_report()
    cpu = msgspec.structs.replace(
        report.accelerators[0], fp32_gflops=gflops, int8_gops=None, bandwidth_gb_per_s=8.0, emulated=emulated
    )
    return store_capabilities(
        device=row, report=capability_report(accelerators=[cpu], os_version=str(next(_SERIAL)))
    )


class TestSpeed:
    @pytest.mark.parametrize(
        ("measured", "median"),
        [([], 0.0), ([5.0], 5.0), ([9.0, 1.0, 3.0], 3.0), ([4.0, 1.0, 2.0, 10.0], 3.0)],
    )
    def test_it_is_the_median_of_the_classs_devices(
        self, tenant: Tenant, entry: DeviceClass, measured: list[float], median: float
    ) -> None:
        for gflops in measured:
            device(tenant, gflops)
        speed = speeds_of(tenant, [entry])["entry"]
        assert speed == WorkerSpeed(fp32_gflops=median, memory_gb_s=8.0 if measured else 0.0)
        (snapshot,) = targets_of(tenant, [entry])
        assert snapshot.speed == speed

    def test_only_accepted_devices_and_real_figures_count_for_real_accelerators(
        self, tenant: Tenant, entry: DeviceClass
    ) -> None:
        device(tenant, 7.0)
        device(tenant, 1.0, state="pending")
        device(tenant, 1.0, emulated=True)
        device(tenant, None)
        assert speeds_of(tenant, [entry])["entry"].fp32_gflops == 7.0
        emulated = make_class(tenant, "entry", emulated=True)
        assert speeds_of(tenant, [emulated])["entry"].fp32_gflops == 1.0

    def test_other_tenants_devices_are_not_looked_at(
        self, tenant: Tenant, other_tenant: Tenant, entry: DeviceClass
    ) -> None:
        make_class(other_tenant, "entry")
        device(other_tenant, 7.0)
        assert speeds_of(tenant, [entry])["entry"] == WorkerSpeed()

    def test_one_query_whatever_the_fleet(
        self, tenant: Tenant, entry: DeviceClass, django_assert_num_queries: Any
    ) -> None:
        classes = [entry, make_class(tenant, "mid", filter="ram_mb >= 6000")]
        for gflops in range(1, 6):
            device(tenant, float(gflops))
        assert AcceleratorFigure.objects.count() == 10
        with django_assert_num_queries(1):
            speeds_of(tenant, classes)


class TestReportedLatencies:
    @pytest.fixture
    def build(self, version: ModelVersion, entry: DeviceClass) -> Build:
        tailor(version=version, actor=ACTOR)
        row = Build.objects.get()
        apply_build_result(result=built(row))
        return row

    def _self_test(self, build: Build, tenant: Tenant, latency_ms: float, **changes: Any) -> None:
        (row,) = make_devices(tenant, 1, class_name="entry")
        rollout = create_rollout(
            release=make_release(_app(tenant), ["entry"], number=100 + next(_SERIAL)),
            name="r",
            actor=ACTOR,
        )
        test = {"passed": True, "emulated": False, "latency_p50_ms": latency_ms} | changes
        Assignment.objects.create(
            tenant=tenant, device=row, rollout=rollout, class_name="entry", version=build.version, build=build,
            state="active", self_test=test, changed_at=datetime.now(UTC),
        )  # fmt: skip

    def _requests(self, build: Build, tenant: Tenant, **changes: Any) -> None:
        values: dict[str, Any] = {
            "tenant_id": tenant.pk, "device_id": build.pk, "build_id": build.pk, "class_name": "entry",
            "at": datetime.now(UTC), "window_s": 10, "provider": "CPUExecutionProvider", "emulated": False,
            "requests": 5, "errors": 0, "latency_buckets": [0] * 10 + [5] + [0] * 23, "latency_sum_ms": 40,
        }  # fmt: skip
        InferenceRow.objects.create(**values | changes)

    def test_nothing_was_reported(self, build: Build, entry: DeviceClass) -> None:
        assert reported_latencies(build.version, [entry]) == {}

    def test_self_tests_count_before_requests(self, build: Build, tenant: Tenant, entry: DeviceClass) -> None:
        self._requests(build, tenant)
        (served,) = reported_latencies(build.version, [entry])["entry"].values()
        assert served > 0
        for latency_ms in (30.0, 10.0, 50.0):
            self._self_test(build, tenant, latency_ms)
        self._self_test(build, tenant, 1.0, passed=False)
        self._self_test(build, tenant, 1.0, emulated=True)
        assert reported_latencies(build.version, [entry]) == {"entry": {str(build.pk): 30.0}}

    def test_emulated_requests_do_not_count_for_a_real_class(
        self, build: Build, tenant: Tenant, entry: DeviceClass
    ) -> None:
        self._requests(build, tenant, emulated=True)
        self._requests(build, tenant, class_name="other")
        assert reported_latencies(build.version, [entry]) == {}

    def test_planning_anew_takes_them(self, build: Build, tenant: Tenant, entry: DeviceClass) -> None:
        for _ in range(2):
            self._self_test(build, tenant, 123.0)
        tailor(version=build.version, actor=ACTOR)
        assert Tailoring.objects.get().latencies == {}  # nothing was planned
        tailor(version=build.version, replan=True, actor=ACTOR)
        tailoring = Tailoring.objects.get()
        assert tailoring.latencies == {str(build.pk): 123.0}
        (measured,) = planning.measured_builds(build.version, tailoring.latencies)
        assert measured.latency_ms == 123.0


def _app(tenant: Tenant) -> App:
    return App.objects.get(tenant=tenant)


class TestPlanning:
    def test_more_devices_are_no_reason_to_plan_anew(
        self, tenant: Tenant, version: ModelVersion, entry: DeviceClass
    ) -> None:
        tailor(version=version, actor=ACTOR)
        first = Tailoring.objects.get()
        device(tenant, 5.0)
        tailor(version=version, actor=ACTOR)
        again = Tailoring.objects.get()
        assert (again.planned_at, again.target) == (first.planned_at, first.target)
        assert again.target["speed"]["fp32_gflops"] == 0.0
        tailor(version=version, replan=True, actor=ACTOR)
        anew = Tailoring.objects.get()
        assert anew.planned_at != first.planned_at
        assert anew.target["speed"]["fp32_gflops"] == 5.0

    def test_an_edited_class_is_planned_anew(
        self, tenant: Tenant, version: ModelVersion, entry: DeviceClass
    ) -> None:
        tailor(version=version, actor=ACTOR)
        first = Tailoring.objects.get()
        make_class(tenant, "entry", precisions=["int4", "int8"], quality_floor=0.98, objective="quality")
        tailor(version=version, actor=ACTOR)
        changed = Tailoring.objects.get()
        assert changed.target["objective"] == "quality"
        assert changed.candidates[0]["recipe"] != first.candidates[0]["recipe"]

    def test_classes_are_named_or_all(self, tenant: Tenant, version: ModelVersion) -> None:
        with pytest.raises(Conflict):
            classes_named(tenant)
        make_class(tenant, "b")
        make_class(tenant, "a", filter="ram_mb >= 1")
        assert [row.name for row in classes_named(tenant)] == ["b", "a"]  # by rank
        assert [row.name for row in classes_named(tenant, ["a"])] == ["a"]
        with pytest.raises(NotFound) as unknown:
            classes_named(tenant, ["a", "z"])
        assert unknown.value.code == "unknown_class"

    def test_a_preview_leaves_no_trace(self, version: ModelVersion, entry: DeviceClass) -> None:
        (planned,) = preview(version=version, classes=[entry])
        assert planned.target.name == "entry"
        assert planned.outcome.candidates
        assert planned.descriptions[0]
        assert planned.took_ms > 0
        assert not Tailoring.objects.exists()
        assert not Build.objects.exists()

    def test_a_preview_plans_what_tailoring_then_builds(
        self, version: ModelVersion, entry: DeviceClass
    ) -> None:
        (planned,) = preview(version=version, classes=[entry])
        tailor(version=version, actor=ACTOR)
        assert Tailoring.objects.get().candidates == msgspec.to_builtins(planned.outcome.candidates)

    def test_a_version_that_is_not_ready_is_not_planned(self, app: App, entry: DeviceClass) -> None:
        model = Model.objects.create(tenant=app.tenant, app=app, name="new")
        version = put_single(model=model, data=[b"graph"], size=5, actor=ACTOR)
        with pytest.raises(WrongState):
            preview(version=version, classes=[entry])

    def test_a_class_added_later_knows_what_was_measured(self, version: ModelVersion) -> None:
        def wanted(name: str) -> Target:
            return target(name, floor=0.98, precisions=["int4", "int8"])

        request_builds(version=version, targets=[wanted("first")], actor=ACTOR)
        apply_build_result(result=built(Build.objects.get(), quality=0.96))
        (later,) = request_builds(version=version, targets=[wanted("later")], actor=ACTOR)
        assert "corrected by 1 measured build" in " ".join(later.candidates[0]["reasons"])
        assert later.build == Tailoring.objects.get(class_name="first").build  # both share what follows


class TestLearnedRounding:
    def test_it_is_asked_for_and_kept_until_it_is_taken_back(self, version: ModelVersion) -> None:
        def ask(**changes: Any) -> Tailoring:
            wanted = target("small", floor=0.98, precisions=["int4", "int8"])
            return request_builds(version=version, targets=[wanted], actor=ACTOR, **changes)[0]

        plain = ask()
        assert plain.candidates[0]["recipe"]["learned"] is False
        learned = ask(learned=True)
        assert learned.planned_at != plain.planned_at
        assert learned.build is not None
        assert learned.build.description.endswith("learned")
        assert [each["recipe"]["learned"] for each in learned.candidates] == [
            True,
            False,
        ]  # no INT4 in the careful one
        assert ask().planned_at == learned.planned_at
        apply_build_result(result=built(learned.build, quality=0.97))
        corrected = Tailoring.objects.get()
        assert corrected.build is not None
        assert corrected.build.plan["recipe"]["learned"] is True
        assert ask(learned=False).candidates[0]["recipe"]["learned"] is False


class TestFronts:
    def test_they_are_drawn_once_and_anew_with_the_plan(
        self, version: ModelVersion, entry: DeviceClass
    ) -> None:
        tailor(version=version, actor=ACTOR)
        assert Tailoring.objects.get().front is None
        assert draw_fronts() == 1
        assert draw_fronts() == 0
        front = Tailoring.objects.get().front
        assert front is not None
        sizes = [point["size_bytes"] for point in front]
        assert sizes == sorted(sizes)
        assert len(sizes) > 10
        tailor(version=version, replan=True, actor=ACTOR)
        assert Tailoring.objects.get().front is None
        assert draw_fronts() == 1

    def test_one_that_cannot_be_drawn_holds_up_none(
        self, version: ModelVersion, tenant: Tenant, entry: DeviceClass
    ) -> None:
        make_class(tenant, "mid", filter="ram_mb >= 6000")
        tailor(version=version, actor=ACTOR)
        Tailoring.objects.filter(class_name="entry").update(target={"name": "no target at all"})
        assert draw_fronts() == 2
        assert Tailoring.objects.get(class_name="entry").front == []
        assert Tailoring.objects.get(class_name="mid").front


class TestUnverified:
    @pytest.mark.parametrize("generated", [True, False])
    def test_builds_on_generated_inputs_say_so_everywhere(
        self, app: App, entry: DeviceClass, generated: bool
    ) -> None:
        version = ready(app, synthetic_samples=generated)
        tailor(version=version, actor=ACTOR)
        build = Build.objects.get()
        assert build.unverified is False  # nothing is measured yet
        apply_build_result(result=built(build))
        build.refresh_from_db()
        assert build.unverified is generated
        body = bytes(build.artifact.manifest)
        assert decode_manifest(body).unverified is generated
        assert (b'"unverified"' in body) is generated  # older agents see what they always saw
        assert version.lineage["synthetic_samples"] is generated
        assert ("unverified" in Tailoring.objects.get().reason) is generated

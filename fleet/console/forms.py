"""Forms of the console. They shape input; services decide what is valid."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, QueryDict

from fleet.rollouts.decision import Policy
from quantize_worker.contract import PRECISIONS
from tenancy.scopes import SCOPES

MB = 1_000_000


def sent(request: HttpRequest) -> QueryDict | None:
    """What a form was sent with, even if that is nothing; None where it is only to be shown."""
    return request.POST if request.method == "POST" else None


class StyledForm(forms.Form):
    """Gives every widget Tabler's class; fields named in ``halves`` share a row in pairs."""

    halves: tuple[str, ...] = ()
    use_required_attribute = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.label_suffix = ""
        for field in self.fields.values():
            widget = field.widget
            if isinstance(widget, forms.CheckboxInput | forms.CheckboxSelectMultiple):
                css = "form-check-input"
            else:
                css = "form-select" if isinstance(widget, forms.Select) else "form-control"
            widget.attrs["class"] = f"{css} {widget.attrs.get('class', '')}".strip()

    def add_error(self, field: str | None, error: Any) -> None:
        super().add_error(field, error)
        for name in self.errors.keys() & self.fields.keys():
            attrs = self.fields[name].widget.attrs
            if "is-invalid" not in attrs["class"]:
                attrs["class"] += " is-invalid"

    def add_problem(self, detail: str, field: str = "") -> None:
        """Show a service's refusal at its field, or above the form."""
        self.add_error(field if field in self.fields else None, detail)


class DeviceClassForm(StyledForm):
    halves = (
        "title", "rank", "accelerator", "execution_provider", "quality_floor", "objective", "memory_mb",
        "storage_mb", "latency_ms", "energy_mwh",
    )  # fmt: skip

    name = forms.SlugField(max_length=63, help_text="Short and lasting, e.g. mid-range-cpu.")
    title = forms.CharField(max_length=100, required=False, help_text="What people read.")
    rank = forms.IntegerField(
        min_value=0, required=False, help_text="The lowest is asked first. Empty: after the others."
    )
    filter = forms.CharField(
        max_length=2000,
        widget=forms.Textarea(attrs={"rows": 2, "class": "mono", "spellcheck": "false"}),
        help_text='E.g. accelerator == "npu" and ram_mb >= 8192. A device is in the first class that matches.',
    )
    accelerator = forms.ChoiceField(choices=[(kind, kind.upper()) for kind in ("cpu", "gpu", "npu")])
    execution_provider = forms.CharField(
        max_length=64, initial="CPUExecutionProvider", help_text="ONNX Runtime's name of it."
    )
    emulated = forms.BooleanField(
        required=False,
        label="Emulated",
        help_text="The CPU stands in for this accelerator; shown wherever its figures are.",
    )
    precisions = forms.CharField(
        initial="int8-dynamic, fp16, fp32",
        help_text="Those it accepts, the preferred one first; a build mixes them layer by layer. "
        f"Of: {', '.join(PRECISIONS)}.",
    )
    quality_floor = forms.FloatField(
        min_value=0, max_value=1, initial=0.98, help_text="Share of the FP32 source's quality, 0 to 1."
    )
    objective = forms.ChoiceField(
        choices=[
            ("size", "The smallest build over the floor"),
            ("latency", "The fastest build over the floor"),
            ("quality", "The best build within the budgets"),
        ],
        initial="size",
        required=False,
        help_text="What is best among what fits.",
    )
    memory_mb = forms.FloatField(min_value=0.001, label="Memory for a model (MB)", initial=200)
    storage_mb = forms.FloatField(min_value=0.001, label="Storage for a build (MB)", initial=200)
    latency_ms = forms.FloatField(
        min_value=0, required=False, label="Latency budget (ms)", help_text="Per inference. Empty: none."
    )
    energy_mwh = forms.FloatField(
        min_value=0, required=False, label="Energy budget (mWh)", help_text="Per inference. Empty: none."
    )
    active_power_mw = forms.FloatField(
        min_value=0,
        required=False,
        label="Active power (mW)",
        help_text="Of the accelerator at work, from a data sheet; with it, latency gives energy.",
    )

    def values(self) -> dict[str, Any]:
        """What the service takes: budgets in bytes, precisions as a list."""
        data = dict(self.cleaned_data)
        data["memory_bytes"] = round(data.pop("memory_mb") * MB)
        data["storage_bytes"] = round(data.pop("storage_mb") * MB)
        data["objective"] = data["objective"] or self.fields["objective"].initial
        data["precisions"] = [part.strip() for part in data["precisions"].split(",") if part.strip()]
        return data


class ModelCreateForm(StyledForm):
    name = forms.SlugField(max_length=63, help_text="Devices know the model by it.")
    app = forms.ChoiceField(help_text="The app team that owns it.")
    description = forms.CharField(max_length=2000, required=False, widget=forms.Textarea(attrs={"rows": 2}))

    def __init__(self, *args: Any, apps: list[Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["app"].choices = [(app.slug, app.name) for app in apps]  # type: ignore[attr-defined]


class SeveralFilesInput(forms.FileInput):
    allow_multiple_selected = True


class SeveralFilesField(forms.FileField):
    """Files that were chosen together, as a list."""

    widget = SeveralFilesInput

    def clean(self, data: Any, initial: Any = None) -> list[UploadedFile]:
        chosen = data if isinstance(data, list | tuple) else [data]
        one = super().clean
        return [one(each, initial) for each in chosen or [None]]


class UploadForm(StyledForm):
    model = SeveralFilesField(
        label="Model",
        widget=SeveralFilesInput(attrs={"multiple": True}),
        help_text="An .onnx file, with its external data if it has any; or config.json and *.safetensors of a "
        "BERT-like encoder, with the tokenizer's files if you like. Choose them together.",
    )
    evaluation = forms.FileField(
        required=False,
        label="Evaluation set (.npz)",
        widget=forms.FileInput(attrs={"accept": ".npz"}),
        help_text="Inputs by name, optional labels. Quality is measured on it.",
    )
    calibration = forms.FileField(
        required=False,
        label="Calibration set (.npz)",
        widget=forms.FileInput(attrs={"accept": ".npz"}),
        help_text="Inputs by name; for static INT8.",
    )


_DEFAULT = Policy()


class RolloutForm(StyledForm):
    halves = ("minimum_per_group", "device_timeout_h", "success_percent", "failure_percent")

    name = forms.CharField(max_length=100)
    release = forms.ChoiceField()
    filter = forms.CharField(
        max_length=2000,
        required=False,
        widget=forms.TextInput(attrs={"class": "mono", "spellcheck": "false", "placeholder": "every device"}),
        help_text="Narrow it down, e.g. tag:beta or class:entry. Empty: every accepted device.",
    )
    groups_percent = forms.CharField(
        label="Groups (%)",
        initial=", ".join(f"{share * 100:g}" for share in _DEFAULT.groups),
        help_text="Shares of each class's devices, rising to 100.",
    )
    minimum_per_group = forms.IntegerField(
        min_value=1, initial=_DEFAULT.minimum_per_group, help_text="Devices per class at least."
    )
    device_timeout_h = forms.FloatField(
        min_value=0.01,
        initial=f"{_DEFAULT.device_timeout_s / 3600:g}",
        label="Device timeout (hours)",
        help_text="After that a silent device is not waited for.",
    )
    success_percent = forms.FloatField(
        min_value=0, max_value=100, initial=f"{_DEFAULT.success_ratio * 100:g}", label="Advance at (% active)"
    )
    failure_percent = forms.FloatField(
        min_value=0,
        max_value=100,
        initial=f"{_DEFAULT.failure_ratio * 100:g}",
        label="Pause above (% failed)",
    )
    soak_min = forms.FloatField(
        min_value=0,
        initial=f"{_DEFAULT.soak_s / 60:g}",
        label="Soak (minutes)",
        help_text="Watch a complete group this long before the next one.",
    )

    def __init__(self, *args: Any, releases: list[Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["release"].choices = [(str(r.pk), str(r)) for r in releases]  # type: ignore[attr-defined]

    def clean_groups_percent(self) -> list[float]:
        try:
            return [
                round(float(part) / 100, 6)
                for part in self.cleaned_data["groups_percent"].split(",")
                if part.strip()
            ]
        except ValueError:
            raise forms.ValidationError("Numbers with commas between them, e.g. 1, 10, 50, 100.") from None

    def policy(self) -> dict[str, Any]:
        data = self.cleaned_data
        return {
            "groups": data["groups_percent"],
            "minimum_per_group": data["minimum_per_group"],
            "success_ratio": round(data["success_percent"] / 100, 6),
            "failure_ratio": round(data["failure_percent"] / 100, 6),
            "soak_s": data["soak_min"] * 60,
            "device_timeout_s": data["device_timeout_h"] * 3600,
        }


class TokenForm(StyledForm):
    name = forms.CharField(max_length=100, help_text="Where it will be used, e.g. ci.")
    app = forms.ChoiceField()
    scopes = forms.MultipleChoiceField(
        choices=[(scope, scope) for scope in SCOPES], widget=forms.CheckboxSelectMultiple
    )
    expires_days = forms.IntegerField(
        min_value=1, max_value=3650, required=False, label="Expires after (days)", help_text="Empty: never."
    )

    def __init__(self, *args: Any, apps: list[Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["app"].choices = [(app.slug, app.name) for app in apps]  # type: ignore[attr-defined]


class AppForm(StyledForm):
    slug = forms.SlugField(max_length=63, help_text="E.g. search.")
    name = forms.CharField(max_length=200)


class ProvisioningKeyForm(StyledForm):
    name = forms.CharField(max_length=100, help_text="E.g. factory line 2.")
    accept = forms.BooleanField(
        required=False,
        initial=True,
        label="Accept at once",
        help_text="Otherwise devices wait until an operator accepts them.",
    )
    tags = forms.CharField(required=False, help_text="Given to every device that joins, with commas between.")

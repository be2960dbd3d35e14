"""Builds of versions without an evaluation set were measured on generated inputs: say so."""

from django.db import migrations


def mark(apps, schema_editor):
    Build = apps.get_model("models_registry", "Build")
    generated = Build.objects.filter(quality__isnull=False, version__lineage__synthetic_samples=True)
    generated.update(unverified=True)


class Migration(migrations.Migration):

    dependencies = [
        ("models_registry", "0002_tailoring_by_layer"),
    ]

    operations = [
        migrations.RunPython(mark, migrations.RunPython.noop, elidable=True),
    ]

import django.db.models.deletion
import uuid
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('models_registry', '0001_initial'),
        ('tenancy', '0001_initial'),
    ]

    operations = [
        migrations.AddField(
            model_name='build',
            name='description',
            field=models.TextField(blank=True, db_default='', default=''),
        ),
        migrations.AddField(
            model_name='build',
            name='queue',
            field=models.CharField(blank=True, db_default='', default='', max_length=32),
        ),
        migrations.AddField(
            model_name='build',
            name='step_began_at',
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name='build',
            name='unverified',
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AddField(
            model_name='modelversion',
            name='queue',
            field=models.CharField(blank=True, db_default='', default='', max_length=32),
        ),
        migrations.AddField(
            model_name='modelversion',
            name='step_began_at',
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name='modelversion',
            name='worker',
            field=models.CharField(blank=True, db_default='', default='', max_length=100),
        ),
        migrations.AddField(
            model_name='tailoring',
            name='front',
            field=models.JSONField(null=True),
        ),
        migrations.AddField(
            model_name='tailoring',
            name='latencies',
            field=models.JSONField(null=True),
        ),
        migrations.AddField(
            model_name='tailoring',
            name='learned',
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AddField(
            model_name='tailoring',
            name='nearest',
            field=models.JSONField(null=True),
        ),
        migrations.AddField(
            model_name='tailoring',
            name='planned_at',
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name='tailoring',
            name='planned_ms',
            field=models.FloatField(null=True),
        ),
        migrations.AddField(
            model_name='tailoring',
            name='replans',
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
        migrations.AlterField(
            model_name='build',
            name='worker',
            field=models.CharField(blank=True, db_default='', default='', max_length=100),
        ),
        migrations.CreateModel(
            name='CandidateBatch',
            fields=[
                ('attempt', models.PositiveIntegerField(default=0)),
                ('starts', models.PositiveIntegerField(default=0)),
                ('enqueued_at', models.DateTimeField(null=True)),
                ('queue', models.CharField(blank=True, db_default='', default='', max_length=32)),
                ('lease_expires_at', models.DateTimeField(null=True)),
                ('step', models.CharField(blank=True, max_length=40)),
                ('step_began_at', models.DateTimeField(null=True)),
                ('share', models.FloatField(default=0.0)),
                ('worker', models.CharField(blank=True, db_default='', default='', max_length=100)),
                ('id', models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ('number', models.PositiveIntegerField()),
                ('layers', models.JSONField()),
                ('state', models.CharField(choices=[('planned', 'Planned'), ('building', 'Building'), ('ready', 'Ready'), ('failed', 'Failed'), ('cancelled', 'Cancelled')], default='planned', max_length=16)),
                ('found', models.JSONField(null=True)),
                ('error_code', models.CharField(blank=True, max_length=40)),
                ('error_message', models.TextField(blank=True)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('finished_at', models.DateTimeField(null=True)),
                ('tenant', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='tenancy.tenant')),
                ('version', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='batches', to='models_registry.modelversion')),
            ],
            options={
                'indexes': [models.Index(fields=['state', 'lease_expires_at'], name='batch_lease')],
                'constraints': [models.UniqueConstraint(fields=('version', 'number'), name='batch_number')],
            },
        ),
    ]

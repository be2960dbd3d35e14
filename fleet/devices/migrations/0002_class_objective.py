from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('devices', '0001_initial'),
    ]

    operations = [
        migrations.AddField(
            model_name='deviceclass',
            name='active_power_mw',
            field=models.FloatField(null=True),
        ),
        migrations.AddField(
            model_name='deviceclass',
            name='objective',
            field=models.CharField(db_default='size', default='size', max_length=8),
        ),
    ]

"""### Recommend movies to every viewer as of a day

**What.** Ranks movies for each viewer with the champion, from the ratings known at the end of a day
(`scoring.batch_recommendations`). Publishes the asset `batch_recommendations` with the day in its event.

**When.** When the gate has decided (asset `recommendation_champion`), and at 06:20 UTC whatever became of the
training. The day is the last full one before the run, or the parameter `date`.

**Safe to rerun?** Yes: the day's rows are replaced at once; a run that was killed continues.

**On failure.** No champion yet: run `train_movie_recommendation_hybrid`. No ratings known on that day, or no
feature tables: run `run_dbt_feast_models`. Until it succeeds readers keep the day before.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param

from operators.root_command_operator import RootCommandOperator
from scheduling.assets import BATCH_RECOMMENDATIONS, RECOMMENDATION_CHAMPION
from scheduling.run_dates import LAST_FULL_DAY
from scheduling.task_defaults import TASK_DEFAULTS

with DAG(
    "recommend_daily_movies",
    doc_md=__doc__,
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable("20 6 * * *", timezone="UTC"), assets=RECOMMENDATION_CHAMPION
    ),
    start_date=datetime(2018, 4, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=TASK_DEFAULTS,
    tags=["scoring", "recommendation", "daily"],
    params={
        "date": Param(
            None, type=["null", "string"], format="date", description="The day to recommend movies as of"
        )
    },
):
    RootCommandOperator(
        task_id="predict_batch",
        root="ml-model-development",
        workdir="models/movie_recommendation_hybrid",
        command=["python", "-m", "src.predict_batch", "--date", LAST_FULL_DAY],
        outlets=[BATCH_RECOMMENDATIONS],
        event_extra={"date": LAST_FULL_DAY},
    )

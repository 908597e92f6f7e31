"""Run by Airflow's own Python: imports the DAG and starts its task's pipeline as the operator does.

Takes the DAG's folder and, as JSON, Airflow's variables, options for the pipeline over the DAG's,
and where Beamtag is. Prints what it found: the schedule, and the id of the job on Dataflow.
"""

from __future__ import annotations

import json
import sys

from airflow.dag_processing.dagbag import DagBag

folder, told = sys.argv[1], json.loads(sys.argv[2])
bag = DagBag(dag_folder=folder)
assert not bag.import_errors, bag.import_errors
dag = bag.dags["beamtag_nightly"]
[task] = dag.tasks
task.render_template_fields({"var": {"value": told["variables"]}})
task.pipeline_options |= told["options"]
# What `execute` does but for waiting: that asks Google.
task._execute_context = None
task._cast_dataflow_config()
task.pipeline_options.setdefault("labels", {})["airflow-version"] = "v3-3-2"
_, _, options, on_line, has_id = task._init_pipeline_options(
    format_pipeline_options=True, job_name_variable_key="job_name"
)
task.beam_hook.start_python_pipeline(
    variables=options,
    py_file=told["py_file"],
    py_options=task.py_options,
    py_interpreter=told["py_interpreter"],
    process_line_callback=on_line,
    is_dataflow_job_id_exist_callback=has_id,
)
found = {"schedule": dag.schedule, "job": task.dataflow_job_id, "py_file": task.py_file}
print(json.dumps(found))

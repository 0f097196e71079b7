run "a_small_machine" {
  command = plan
  variables {
    memory_gib = 8
  }
  assert {
    condition     = output.settings == { AIRFLOW_PARALLELISM = "4", AIRFLOW_SCHEDULER_MEMORY = "2048m", AIRFLOW_API_MEMORY = "1536m" }
    error_message = "four tasks at a time in two GiB"
  }
}

run "a_larger_one_runs_more" {
  command = plan
  variables {
    memory_gib = 32
    public_url = "https://airflow.example.org"
  }
  assert {
    condition     = output.settings.AIRFLOW_PARALLELISM == "28" && output.settings.AIRFLOW_SCHEDULER_MEMORY == "8192m"
    error_message = "a quarter of the machine, 256 MiB a task beside the scheduler's own GiB"
  }
  assert {
    condition     = output.settings.AIRFLOW_PUBLIC_URL == "https://airflow.example.org"
    error_message = "the address people type"
  }
}

run "too_small" {
  command = plan
  variables {
    memory_gib = 4
  }
  expect_failures = [var.memory_gib]
}

run "no_plain_http" {
  command = plan
  variables {
    memory_gib = 16
    public_url = "http://airflow.example.org"
  }
  expect_failures = [var.public_url]
}

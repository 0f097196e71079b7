variables {
  set_up = {
    number         = "1"
    title          = "data processing and feature store"
    hostname       = "mlops-test-server1"
    provisioning   = "SERVER1_HOST='10.99.7.11'\n"
    setup          = "setup_server1_dataproc.sh"
    data_root      = "/srv/docker"
    repository_url = "https://git.example.org/platform.git"
    commit         = "0123456789abcdef0123456789abcdef01234567"
  }
  servers_env = { SERVER1_HOST = "10.99.7.11" }
}

run "is_a_cloud_config_that_holds_the_settings" {
  command = plan
  assert {
    condition     = startswith(output.text, "#cloud-config\n") && yamldecode(output.text).hostname == "mlops-test-server1"
    error_message = "cloud-init knows it by its first line"
  }
  assert {
    condition = [
      for file in yamldecode(output.text).write_files : base64decode(file.content) if file.path == "/root/servers.env"
    ] == ["SERVER1_HOST=10.99.7.11\n"]
    error_message = "the settings arrive as they are"
  }
}

run "a_secret_is_refused" {
  command = plan
  variables {
    servers_env = { REDIS_PASSWORD = "x" }
  }
  expect_failures = [var.servers_env]
}

run "more_than_the_cloud_takes_is_refused" {
  command = plan
  variables {
    servers_env = { NODE_EXPORTERS = join(" ", [for number in range(1000) : "server${number}.a-name-that-is-long"]) }
  }
  expect_failures = [output.text]
}

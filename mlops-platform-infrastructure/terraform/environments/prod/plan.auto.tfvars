subnet_cidr         = "10.30.1.0/24"
platform_version    = "0.1.0"
api_client_networks = ["10.30.0.0/16"]

servers = {
  "1" = { instance_type = "r7i.2xlarge", memory_gib = 64, data_gib = 1000 }
  "2" = { instance_type = "m7i.2xlarge", memory_gib = 32, data_gib = 300 }
  "3" = { instance_type = "m7i.2xlarge", memory_gib = 32, data_gib = 500 }
}

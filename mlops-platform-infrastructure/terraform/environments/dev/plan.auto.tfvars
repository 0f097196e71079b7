subnet_cidr         = "10.20.1.0/24"
platform_version    = "dev"
api_client_networks = ["10.20.0.0/16"]

servers = {
  "1" = { instance_type = "m7i.xlarge", memory_gib = 16, data_gib = 200 }
  "2" = { instance_type = "m7i.xlarge", memory_gib = 16, data_gib = 100 }
  "3" = { instance_type = "m7i.xlarge", memory_gib = 16, data_gib = 100 }
}

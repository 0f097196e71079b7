# Our images and the stand-ins for those of other projects.
.PHONY: images images-list stand-ins lock-images test-images

IMAGE_COMPILE := $(UV) pip compile --quiet --python-platform x86_64-manylinux_2_28 --python-version 3.11 --generate-hashes --no-annotate --no-header

images: setup ## Build our images on a Docker Engine, stand-ins where none can be pulled (IMAGES="name ..." for some)
	@$(PY) -m server_tools images build $(IMAGES)

images-list: setup ## Every image of the platform: is it there, how large, of which commit
	@$(PY) -m server_tools images list

stand-ins: setup ## Make the pinned images of other projects available: pulled, or made here where no registry answers
	@$(PY) -m local_engine stand-ins

lock-images: | $(UV) ## Resolve the locks of the images that install less than their root does
	$(IMAGE_COMPILE) --constraint ../feature-store-management/requirements.txt --overrides ../feature-store-management/image-overrides.txt \
		../feature-store-management/pyproject.toml ../feature-store-management/image-extras.in -o ../feature-store-management/requirements_feast_cli.txt
	$(IMAGE_COMPILE) --constraint ../ml-reporting-and-monitoring-logic/requirements.txt \
		../ml-reporting-and-monitoring-logic/pyproject.toml -o ../ml-reporting-and-monitoring-logic/requirements_reporting.txt
	$(IMAGE_COMPILE) --constraint requirements.txt --overrides images/mlflow_server/overrides.txt \
		images/mlflow_server/requirements.in -o images/mlflow_server/requirements.txt
	$(IMAGE_COMPILE) --constraint ../feature-store-management/requirements.txt \
		images/spark/requirements.in -o images/spark/requirements.txt
	$(IMAGE_COMPILE) images/spark/build-requirements.in -o images/spark/build-requirements.txt

test-images: setup ## Build our images and run each on a Docker Engine
	@$(PY) -m pytest --durations 0 -s -m engine tests/images

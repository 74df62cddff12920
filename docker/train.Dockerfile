# A node of a Ray cluster: Ray's image with the versions of requirements/train.txt (linux/amd64). In the checkout:
#   docker build -f docker/train.Dockerfile -t detect-ai-train:cpu .
#   docker build -f docker/train.Dockerfile -t detect-ai-train:gpu --build-arg RAY_IMAGE=rayproject/ray:2.60.0-py311-gpu .
# Give RAY_IMAGE with its digest (docker buildx imagetools inspect rayproject/ray:2.60.0-py311). It must have the Ray
# version of the lock file. ops/kubernetes/ runs the code in /app; `ray job submit --working-dir` uploads other code.
ARG RAY_IMAGE=rayproject/ray:2.60.0-py311

FROM ${RAY_IMAGE}
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
COPY requirements/train.txt /tmp/train.txt
RUN pip install --require-hashes -r /tmp/train.txt && pip check
WORKDIR /app
COPY . .
ENV PYTHONPATH=/app

# One bundle over HTTP, in one process on CPUs (linux/amd64). Build it in the checkout:
#   docker build -f docker/serve.Dockerfile --build-arg TORCH_INDEX=… -t detect-ai .
# TORCH_INDEX: the URL of PyTorch's index of CPU builds (see its page Get Started). Their hashes differ from the lock
# file, so torch is checked by version only, everything else by hash. Without TORCH_INDEX, `pip check` fails: PyPI's
# build needs CUDA.
# Run it: docs/SERVING.md, «Serve a bundle».

# Change tag and digest together: docker buildx imagetools inspect python:3.11-slim-bookworm
ARG PYTHON_IMAGE=python:3.11.16-slim-bookworm@sha256:528257d48c1da0dcecc2e725d1ae34498d60c965f1241e39cd6a85a8859bdf84

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
WORKDIR /src
COPY requirements/torch.txt requirements/build.txt requirements/serve.txt /locks/
ARG TORCH_INDEX
RUN python -m venv --without-pip /opt/detect_ai \
  && pip --python /opt/detect_ai install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r /locks/torch.txt \
  && pip --python /opt/detect_ai install --require-hashes -r /locks/serve.txt \
  && pip install --require-hashes -r /locks/build.txt
COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheels . \
  && pip --python /opt/detect_ai install --no-deps --no-index /tmp/wheels/*.whl \
  && pip --python /opt/detect_ai check

FROM ${PYTHON_IMAGE}
# A numeric user lets Kubernetes check runAsNonRoot. The folder is the storage root: API keys and, if on, the log.
RUN install -d -o 65532 -g 65532 /var/lib/detect_ai
COPY --from=build /opt/detect_ai /opt/detect_ai
ENV PATH=/opt/detect_ai/bin:${PATH} \
  PYTHONDONTWRITEBYTECODE=1 \
  PYTHONUNBUFFERED=1 \
  HOME=/tmp \
  HF_HUB_OFFLINE=1 \
  DETECT_AI_STORAGE_ROOT=/var/lib/detect_ai
USER 65532:65532
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
# Further arguments: --metrics-port 9464, serve.max_texts=16, monitoring.log=true …
ENTRYPOINT ["detect-ai", "serve", "--bundle", "/bundle", "serve.host=0.0.0.0"]

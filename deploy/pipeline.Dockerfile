# The pipeline with the locked packages, and what a DVC remote on S3 needs. From the project:
#   docker build -f deploy/pipeline.Dockerfile -t gptmill-pipeline .
#   docker run -v .:/project -u "$(id -u):$(id -g)" gptmill-pipeline dvc repro
# TORCH_INDEX names a package index with another build of PyTorch, for the CPU alone for example.
FROM python:3.11-slim
ARG TORCH_INDEX=""
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /project
WORKDIR /source
COPY requirements requirements
ENV PATH=/opt/gptmill/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/gptmill \
    && pip install --require-hashes --no-deps -r requirements/build.txt \
    && pip install --require-hashes --no-deps --no-build-isolation -r requirements/pipeline.txt \
    && pip install --require-hashes --no-deps -r requirements/remotes.txt \
    && PIP_EXTRA_INDEX_URL="$TORCH_INDEX" pip install -r requirements/torch.txt
# The command `gptmill`; the code that runs is the mounted project's.
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-deps --no-build-isolation . && pip check
ENV PYTHONPATH=/project/src HOME=/tmp DVC_NO_ANALYTICS=true MLFLOW_DISABLE_TELEMETRY=true
RUN useradd --uid 10001 gptmill
USER 10001:10001
WORKDIR /project
CMD ["dvc", "repro"]

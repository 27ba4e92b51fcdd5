# The server alone: no PyTorch, not root, nothing written. From the project's folder:
#   docker build -f deploy/serving.Dockerfile -t gptmill-serving .
#   docker run --read-only -p 127.0.0.1:11435:11435 -e GPTMILL_API_KEY -v ./models/onnx:/models:ro \
#     gptmill-serving
FROM python:3.11-slim AS build
WORKDIR /source
COPY requirements/build.txt requirements/serve.txt requirements/
ENV PATH=/opt/gptmill/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/gptmill \
    && pip install --require-hashes --no-deps -r requirements/build.txt \
    && pip install --require-hashes --no-deps -r requirements/serve.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-deps --no-build-isolation . && pip check

FROM python:3.11-slim
COPY --from=build /opt/gptmill /opt/gptmill
ENV PATH=/opt/gptmill/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /models
EXPOSE 11435
HEALTHCHECK --interval=15s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:11435/ready')"]
CMD ["gptmill", "serve", "--models", "/models", "--host", "0.0.0.0", "--log-level", "info", \
     "--log-format", "json"]

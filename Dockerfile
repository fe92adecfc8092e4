# The CPU:  docker build -t cnnf-brain .            docker run --rm cnnf-brain compare --layers V4 --recordings simulated
# CUDA:     docker build -t cnnf-brain --build-arg TORCH=cu130 .             docker run --rm --gpus all cnnf-brain ...
# TORCH is what uv calls a torch backend: cpu, cu126, cu128, cu130, ...
FROM python:3.12-slim
ARG TORCH=cpu
RUN pip install --no-cache-dir uv
WORKDIR /opt/cnnf-brain
COPY pyproject.toml setup.py README.md LICENSE ./
COPY cnnf_brain cnnf_brain
RUN uv pip install --system --no-cache --torch-backend "$TORCH" ".[robustness,visualize,train]"
WORKDIR /data
ENTRYPOINT ["cnnf-brain"]

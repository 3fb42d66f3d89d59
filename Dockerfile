# docker build -t grpo-math .
# docker run --rm --init --gpus all --shm-size 16g --stop-timeout 600 -e HF_TOKEN \
#     -v grpo-math-cache:/cache -v grpo-math-runs:/work/runs grpo-math launch --config gsm8k_qwen2.5_1.5b --resume_from_checkpoint auto
# NCCL and vLLM exchange data through /dev/shm, of which a container has 64 MB by default: hence --shm-size. The image has
# the CUDA compiler, since vLLM and DeepSpeed compile kernels when they start. Not built by us yet.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv \
    && install -d -o ubuntu -g ubuntu /cache /work /work/runs
ENV PATH=/opt/venv/bin:$PATH HF_HOME=/cache/huggingface VLLM_CACHE_ROOT=/cache/vllm PYTHONUNBUFFERED=1

# The layouts zero2 and zero3 need deepspeed too: --build-arg EXTRAS=vllm,quantization,deepspeed
ARG EXTRAS=vllm,quantization
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY recipes recipes
COPY accelerate_configs accelerate_configs
COPY src src
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt ".[$EXTRAS]"

USER ubuntu
WORKDIR /work
VOLUME ["/cache", "/work/runs"]
ENTRYPOINT ["grpo-math"]
CMD ["--help"]

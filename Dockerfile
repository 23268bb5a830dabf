# Untested here: written where no container engine runs. If a step fails, please report it.
#
#   docker build -t colorgan .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD/runs:/workspace/runs" -v DATA:/data colorgan \
#       pretrain --nproc 2 --data.train /data/shards --run runs/pretrain
#
# The host needs NVIDIA's driver 580 or newer and its container toolkit; without --gpus it runs on CPUs.
FROM python:3.11-slim-bookworm

# g++ builds DeepSpeed's operators at run time; make and git are for `make`.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/colorgan
COPY . .

# The versions of `make install`, without the tools of the tests. PyPI's torch brings CUDA's libraries.
RUN pip install --no-cache-dir --constraint .ci/constraints.txt '.[deepspeed,onnx,remote,transfer]'

# Numba and DALI write caches: to a place that any user may write.
ENV NUMBA_CACHE_DIR=/tmp/numba
WORKDIR /workspace
ENTRYPOINT ["colorgan"]
CMD ["--help"]

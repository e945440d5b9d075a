# docker build -t kd-sweeper .                                                                  on a CPU
# docker build -t kd-sweeper --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 .             on a GPU
# docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" -u "$(id -u):$(id -g)" kd-sweeper train data=folder data.root=my_data
#
# Any base of Debian or Ubuntu with Python 3.11 or newer does: the wheels of torch hold CUDA's libraries, so a base for a
# GPU adds only what lets the container see the driver.
ARG BASE=python:3.12-slim
FROM ${BASE}

RUN python3 -c "import ensurepip, venv" 2>/dev/null \
 || (apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv /opt/kd
ENV PATH=/opt/kd/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /src
COPY requirements.lock .
RUN pip install --require-hashes -r requirements.lock
COPY . .
RUN pip install --no-deps --no-build-isolation . && rm -rf /src/*

# `-u` may name any user: torch and matplotlib ask for a name and a place to write, whoever it is
RUN useradd --create-home kd && chmod 1777 /home/kd && mkdir --mode=1777 /work
ENV HOME=/home/kd USER=kd PYTHONUNBUFFERED=1
USER kd
WORKDIR /work
ENTRYPOINT ["kd"]
CMD ["--help"]

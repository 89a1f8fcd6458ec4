# edgespec for a Jetson Orin with JetPack 6.1 or 6.2: CUDA 12.6 and TensorRT 10.3 are the image's.
# From the repository, on the device:
#   docker build -f docker/jetpack6.Dockerfile -t edgespec:jetpack6 .
# Not built by us: no Jetson was at hand. Sources and how to run it: docs/jetson.md.
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
FROM ${BASE}

RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-pip python3-venv python3-libnvinfer \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/edgespec
COPY pyproject.toml README.md LICENSE ./
COPY edgespec edgespec
COPY export export
COPY runtime runtime
COPY configs configs
RUN python3 -m venv --system-site-packages /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir '.[export]' 'cuda-python>=12.6,<13'

ENV PATH=/opt/venv/bin:${PATH}
WORKDIR /data
ENTRYPOINT ["edgespec"]
CMD ["doctor"]

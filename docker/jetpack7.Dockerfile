# edgespec for a Jetson Thor or Orin with JetPack 7.2: CUDA 13.2 and TensorRT 10.16 are the image's,
# a server's (SBSA) as JetPack 7 has no l4t images. From the repository, on the device:
#   docker build -f docker/jetpack7.Dockerfile -t edgespec:jetpack7 .
# Not built by us: no Jetson was at hand. Sources and how to run it: docs/jetson.md.
ARG BASE=nvcr.io/nvidia/tensorrt:26.05-py3
FROM ${BASE}

RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-pip python3-venv \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/edgespec
COPY pyproject.toml README.md LICENSE ./
COPY edgespec edgespec
COPY export export
COPY runtime runtime
COPY configs configs
RUN python3 -m venv --system-site-packages /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir '.[export]' 'cuda-python>=13,<14'

ENV PATH=/opt/venv/bin:${PATH}
WORKDIR /data
ENTRYPOINT ["edgespec"]
CMD ["doctor"]

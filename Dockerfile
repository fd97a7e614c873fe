# docker build -t convnext-dense .
# With CUDA: docker build --build-arg BASE=IMAGE -t convnext-dense . with an image that has Python 3.10 or later and pip;
# torch and torchvision come from constraints.txt in both.
ARG BASE=python:3.11-slim
FROM ${BASE}

# opencv-python needs libGL and glib. BASE is free, and so is the distribution that their versions belong to.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/convnext-dense
COPY . .
RUN python -m pip install --no-cache-dir -c constraints.txt '.[openmmlab,hub,export,demo]'

ENV CONVNEXT_DENSE_DATA=/data
CMD ["bash"]

# loraprobe in a container, with or without CUDA:
#   docker build --target cpu -t loraprobe:cpu .
#   docker build --target cuda -t loraprobe:cuda .
#   docker run --rm --gpus all -v ~/.cache:/home/user/.cache -v "$PWD:/work" loraprobe:cuda inspect owner/one ./two
FROM python:3.12-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim AS common
COPY --from=build /wheels /wheels
RUN useradd --create-home user && mkdir /work && chown user /work
WORKDIR /work

# torch without CUDA has an index of its own.
FROM common AS cpu
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu /wheels/*.whl
USER user
ENTRYPOINT ["loraprobe"]

# torch from PyPI brings CUDA's libraries; the driver comes from the host.
FROM common AS cuda
RUN pip install --no-cache-dir "$(ls /wheels/*.whl)[quantize,lm-eval,datasets]"
USER user
ENTRYPOINT ["loraprobe"]

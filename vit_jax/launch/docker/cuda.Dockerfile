# The package on NVIDIA GPUs: CUDA comes with JAX's packages, the driver from the machine. The context is what `vit_jax launch docker` fills:
# requirements.txt and vit_jax/.
FROM python:3.12-slim
ENV PYTHONUNBUFFERED=1 PYTHONPATH=/opt/vit_jax JAX_PLATFORMS=cuda,cpu NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY requirements.txt /opt/vit_jax/
RUN python -m pip install --no-cache-dir --requirement /opt/vit_jax/requirements.txt
COPY vit_jax /opt/vit_jax/vit_jax
WORKDIR /work
ENTRYPOINT ["python", "-m", "vit_jax"]

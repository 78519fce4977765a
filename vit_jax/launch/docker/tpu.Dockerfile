# The package on Cloud TPUs: libtpu comes with JAX's packages. The context is what `vit_jax launch docker` fills:
# requirements.txt and vit_jax/.
FROM python:3.12-slim
ENV PYTHONUNBUFFERED=1 PYTHONPATH=/opt/vit_jax JAX_PLATFORMS=tpu,cpu
COPY requirements.txt /opt/vit_jax/
RUN python -m pip install --no-cache-dir --requirement /opt/vit_jax/requirements.txt
COPY vit_jax /opt/vit_jax/vit_jax
WORKDIR /work
ENTRYPOINT ["python", "-m", "vit_jax"]

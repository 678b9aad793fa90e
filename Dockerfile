# Zoetrope's images: `app` runs everything but GPU and safety workers, `gpu` adds PyTorch.
# Plain Dockerfile syntax: builds with and without BuildKit.
FROM python:3.11-slim-bookworm AS app

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 \
    ZOETROPE_HOME=/var/lib/zoetrope WEIGHTS_DIR=/weights WORK_DIR=/tmp/zoetrope

# A named volume takes its owner from the folder it is mounted over.
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/zoetrope zoetrope \
 && mkdir /weights && chown zoetrope /weights

WORKDIR /app
COPY requirements/base.txt requirements/base.txt
RUN pip install --disable-pip-version-check -r requirements/base.txt

COPY manage.py ./
COPY project project
COPY billing billing
COPY inference inference
COPY jobs jobs
COPY docs docs
RUN python -m compileall -q project billing inference jobs

USER zoetrope
ENTRYPOINT ["python", "manage.py"]
CMD ["process", "web"]

FROM app AS gpu
USER root
COPY requirements/gpu.txt requirements/gpu.txt
RUN pip install --disable-pip-version-check -r requirements/base.txt -r requirements/gpu.txt
USER zoetrope
CMD ["worker_gpu", "--no-log-files"]

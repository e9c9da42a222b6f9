# One image for every service of docker-compose.yml: docker compose up --build
# It needs BuildKit (Docker 23 and later), which is sent only the files that COPY names.
FROM python:3.11-slim

# The containers' user; never root: useradd refuses 0, which is taken. scripts/certs says which to take.
ARG FEDSVD_UID=49999
# PyTorch's build, as `uv pip install --torch-backend` names it: cpu, or cu130 and its like for NVIDIA GPUs.
ARG TORCH_BACKEND=cpu

# A named volume takes over owner and mode of the folder that it is mounted on.
RUN useradd --uid "${FEDSVD_UID}" --create-home --home-dir /app --shell /usr/sbin/nologin app \
    && install --directory --owner app --mode 700 /app/state /app/private /app/runs /app/cache /app/flower

# What continuous integration tested, without its own tools: versions from the lock file, names from pyproject.toml.
WORKDIR /opt/fedsvd
COPY requirements.lock pyproject.toml ./
RUN pip install --no-cache-dir "$(grep '^uv==' requirements.lock)" \
    && uv pip install --system --no-cache --torch-backend "${TORCH_BACKEND}" --constraint requirements.lock \
       --requirement pyproject.toml

COPY README.md CHANGELOG.md ./
COPY fedsvd fedsvd
COPY server server
COPY client client
COPY conf conf
RUN uv pip install --system --no-cache --no-deps .

WORKDIR /app
COPY scripts/register scripts/register
USER app
ENV HOME=/app FLWR_HOME=/app/flower FEDSVD_CACHE=/app/cache PYTHONUNBUFFERED=1
CMD ["fedsvd", "doctor"]

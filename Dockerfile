# The image of all services of docker-compose.yml: docker compose up --build
# Requires BuildKit (Docker 23 or later), which receives only the files that COPY names.
FROM python:3.11-slim

# The user of the containers, never root: useradd refuses ID 0, which exists. scripts/certs sets the ID in .env.
ARG FEDSVD_UID=49999
# Build of PyTorch, as a value of `uv pip install --torch-backend`: cpu, or for NVIDIA GPUs cu130 or similar.
ARG TORCH_BACKEND=cpu

# A named volume inherits owner and mode of the directory that it is mounted on.
RUN useradd --uid "${FEDSVD_UID}" --create-home --home-dir /app --shell /usr/sbin/nologin app \
    && install --directory --owner app --mode 700 /app/state /app/private /app/runs /app/cache /app/flower

# The dependencies that continuous integration tests, without development tools: versions from the lock file, names from
# pyproject.toml.
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

# The image of all services of docker-compose.yml: docker compose up --build
# Requires BuildKit (Docker 20.10 or later). docs/deployment.md describes the arguments and how to build behind a mirror.
# Layers are ordered by how often they change: dependencies, user, code.
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

# A package index for everything in place of pip's and uv's default, without credentials: the secret netrc has them.
ARG INDEX_URL=
# Build of PyTorch, as a value of `uv pip install --torch-backend`: cpu, or for NVIDIA GPUs cu130 or similar. It is taken
# from PyTorch's own index, or from a mirror of that build in TORCH_INDEX_URL. If both are empty, INDEX_URL has it.
ARG TORCH_BACKEND=cpu
ARG TORCH_INDEX_URL=

# The dependencies that continuous integration tests, without development tools: versions from the lock file, names from
# pyproject.toml. Not Ray, since nodes are real here. hatchling builds the code below, without an index. What no service
# loads is removed: tests, headers, Arrow's network protocol. The rest is compiled here, because the user of the containers
# cannot write to this directory; of the hundreds of model families in transformers, only common ones.
# Secrets are not stored in the image; the certificate has the authorities of a mirror.
WORKDIR /opt/fedsvd
COPY requirements.lock pyproject.toml ./
RUN --mount=type=secret,id=certificate --mount=type=secret,id=netrc \
    set -eu; \
    export TMPDIR="$(mktemp -d)"; \
    export HOME="${TMPDIR}"; \
    if [ -s /run/secrets/certificate ]; then \
        export SSL_CERT_FILE=/run/secrets/certificate PIP_CERT=/run/secrets/certificate; \
    fi; \
    if [ -s /run/secrets/netrc ]; then export NETRC=/run/secrets/netrc; fi; \
    if [ -n "${INDEX_URL}" ]; then export PIP_INDEX_URL="${INDEX_URL}" UV_DEFAULT_INDEX="${INDEX_URL}"; fi; \
    pip install --no-cache-dir --no-compile --root-user-action ignore "$(grep '^uv==' requirements.lock)"; \
    echo ray > "${TMPDIR}/excludes"; \
    install() { uv pip install --system --no-cache --constraint requirements.lock --excludes "${TMPDIR}/excludes" "$@"; }; \
    if [ -n "${TORCH_INDEX_URL}" ]; then \
        install --no-deps --default-index "${TORCH_INDEX_URL}" torch; \
    elif [ -n "${TORCH_BACKEND}" ]; then \
        set -- --torch-backend "${TORCH_BACKEND}"; \
    fi; \
    install "$@" --requirement pyproject.toml hatchling; \
    pip uninstall --yes --quiet --root-user-action ignore uv; \
    cd "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
    find . -type d -name tests -prune -exec rm -r {} +; \
    find torch/bin -type f ! -name torch_shm_manager -delete; \
    rm -r torch/test torch/include pyarrow/include pyarrow/*flight*; \
    python -m compileall -q -j 0 -x '/transformers/models/|/py312_' .; \
    for family in auto bert distilbert gpt2 llama mpnet roberta; do \
        python -m compileall -q "transformers/models/${family}"; \
    done; \
    python -c 'import datasets, flwr.server, matplotlib.pyplot, opacus, peft, scipy.stats, sklearn, transformers'; \
    rm -r "${TMPDIR}"

# The user of the containers, never root: useradd refuses ID 0, which exists. scripts/certs sets the ID in .env.
ARG FEDSVD_UID=49999
# A named volume inherits owner and mode of the directory that it is mounted on.
RUN useradd --uid "${FEDSVD_UID}" --create-home --home-dir /app --shell /usr/sbin/nologin app \
    && install --directory --owner app --mode 700 /app/state /app/private /app/runs /app/cache /app/flower

COPY README.md CHANGELOG.md ./
COPY fedsvd fedsvd
COPY server server
COPY client client
COPY conf conf
RUN pip install --no-cache-dir --no-index --no-deps --no-build-isolation --root-user-action ignore --quiet .

WORKDIR /app
COPY scripts/register scripts/healthy scripts/
USER app
ENV HOME=/app FLWR_HOME=/app/flower FEDSVD_CACHE=/app/cache PYTHONUNBUFFERED=1
CMD ["fedsvd", "doctor"]

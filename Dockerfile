# The API; the fetcher is there too: docker run --entrypoint python ... fetch_ads.py
ARG PYTHON=3.12-slim
FROM python:${PYTHON}

# Only the packages that run: the versions are said once, in requirements.txt.
COPY requirements.txt /app/
RUN grep -Ev '^(pytest|requests)=' /app/requirements.txt | xargs python -m pip install --no-cache-dir --root-user-action=ignore

# A number, so that a cluster can see that it is not root. A new volume takes its owner from the folder.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin inventory \
    && install -d -o inventory -g inventory -m 0700 /data
COPY --chmod=0444 inventory_api.py fetch_ads.py db.sql openapi.json explorer.html /app/

# All that is ever written is in /data, temporary files too, so that the rest can be read-only.
ENV DATABASE_URL=sqlite:////data/inventory.db \
    HOST=0.0.0.0 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TMPDIR=/data
WORKDIR /app
USER 10001:10001
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s CMD ["python", "/app/inventory_api.py", "--check-health"]
ENTRYPOINT ["python", "/app/inventory_api.py"]

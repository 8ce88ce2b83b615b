# The device image: the runtime and the digits bundle that ships with it, without torch. For one platform or both (arm64 was not built yet):
#   docker build -t restnet-runtime .
#   docker buildx build --platform linux/amd64,linux/arm64 -t restnet-runtime .
# With ONNX Runtime for CUDA (then: restnet-serve --provider cuda,cpu; not built yet, and CUDA's libraries must be there):
#   docker build --build-arg ONNXRUNTIME='onnxruntime-gpu[cuda,cudnn]' -t restnet-runtime:cuda .
# The exporter, with torch, of which the index decides the build (CPU or CUDA):
#   docker build --target export -t restnet-export . && docker run --rm -v ./work:/work restnet-export --anchors ... --out /work/bundle
# Behind a package index of your own, add --secret id=pip,src=pip.conf: it is there for the build and stays out of the image.
# Another bundle: docker run -v ./bundle:/bundle:ro -p 127.0.0.1:8080:8080 restnet-runtime restnet-serve /bundle --host 0.0.0.0 --allow-remote
# One that restnet-update replaces: mount the folder that holds the link, -v /srv/bundles:/bundles:ro, and serve /bundles/mine --watch.
# As tight as it goes: docker run --read-only --cap-drop ALL --security-opt no-new-privileges --memory 512m -p 127.0.0.1:8080:8080 restnet-runtime
# Whoever reaches the port may change the budget, unless it has a token: docker run -e RESTNET_TOKEN=$(openssl rand -hex 32) ..., or --read-only.
ARG PYTHON=3.11
ARG BASE=python:${PYTHON}-slim-bookworm

FROM ${BASE} AS build
ARG ONNXRUNTIME=onnxruntime
WORKDIR /src
# pip stays in an environment of its own, so that the one that is copied holds the runtime alone.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/restnet
# The dependencies change seldom: they have a layer that a change of code leaves alone.
COPY pyproject.toml constraints.txt scripts/requirements.py ./
RUN python3 requirements.py "${ONNXRUNTIME}"
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/pip/bin/pip --python /opt/restnet/bin/python install --no-cache-dir --only-binary=:all: -c limits.txt -r device.txt
COPY README.md LICENSE ./
COPY restnet_runtime restnet_runtime
COPY export export
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/pip/bin/pip --python /opt/restnet/bin/python install --no-cache-dir --no-deps .

FROM build AS build-export
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/pip/bin/pip --python /opt/restnet/bin/python install --no-cache-dir --only-binary=:all: -c limits.txt -r export.txt

# What both images are made on: a user that is not root, with numbers, so that an orchestrator can see it.
FROM ${BASE} AS user
RUN groupadd --gid 10001 restnet \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/cache/restnet --shell /usr/sbin/nologin restnet \
 && install -d -o restnet -g restnet -m 0755 /var/cache/restnet /work
ENV PATH=/opt/restnet/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/var/cache/restnet \
    RESTNET_CACHE=/var/cache/restnet \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001

FROM user AS export
COPY --from=build-export /opt/restnet /opt/restnet
WORKDIR /work
ENTRYPOINT ["restnet-export"]
CMD ["--help"]

# The last one is what is built where no target is named.
FROM user AS device
COPY --from=build /opt/restnet /opt/restnet
# Compiled routes are kept here: mount a volume to keep them over restarts. Nothing else is written, so the rest may be read-only.
WORKDIR /var/cache/restnet
VOLUME ["/var/cache/restnet"]
EXPOSE 8080
STOPSIGNAL SIGTERM
# Healthy is who can predict. A first start compiles the routes, so a slow board has two minutes before a failure counts.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=4).read()"]
CMD ["restnet-serve", "--host", "0.0.0.0", "--allow-remote", "--port", "8080"]

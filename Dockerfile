# syntax=docker/dockerfile:1
#
#   docker build --build-arg COMMIT=$(git rev-parse --short HEAD) -t tollgate .
#   docker run -p 8080:8080 -v ./conf:/etc/tollgate:ro tollgate
#
# Mount the directory, not the file: editors replace files, and a mounted file would keep the old one.
# Listeners must be on 0.0.0.0 in the file. The health check asks `admin`: it has to be there, best on its default, 127.0.0.1:9901. It reads
# the file that GATEWAY_CONFIG names, so name another one there, not with -c.

# This very compiler: the profile in pgo/ is for it.
FROM rust:1.95.0-slim-bookworm AS build
# The crypto library is C.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ARG COMMIT=unknown
ENV TOLLGATE_COMMIT=$COMMIT
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin tollgate && cp target/release/tollgate /tollgate && strip /tollgate

# glibc, root certificates, a "nonroot" user, no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /tollgate /usr/local/bin/tollgate
ENV GATEWAY_CONFIG=/etc/tollgate/gateway.yaml
WORKDIR /etc/tollgate
USER nonroot
EXPOSE 8080
# SIGTERM drains: readiness off, requests in flight finished, exit 0.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["/usr/local/bin/tollgate", "health"]
ENTRYPOINT ["/usr/local/bin/tollgate"]
CMD ["serve"]

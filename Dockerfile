# The program in a small image, as a user without rights, made of a release's tarball:
#
#   release/make.sh && docker build -t runner .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" runner run quickstart
#   docker run --rm --gpus all -v "$PWD:/work" --user "$(id -u):$(id -g)" runner doctor
#
# On Hopper in bf16 the driver, which NVIDIA's container toolkit mounts, is all that one GPU needs; several
# take NCCL too (docs/cluster.md).
FROM debian:trixie-slim AS unpacked
ADD target/release-files/runner-*-x86_64-unknown-linux-gnu.tar.gz /
RUN mv /runner-* /runner && mkdir /work

FROM gcr.io/distroless/cc-debian13:nonroot
COPY --from=unpacked /runner/bin/runner /usr/local/bin/runner
COPY --from=unpacked /runner/LICENSE /runner/crates.cdx.json /usr/local/share/doc/runner/
COPY --from=unpacked --chown=65532:65532 /work /work
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
ENTRYPOINT ["/usr/local/bin/runner"]

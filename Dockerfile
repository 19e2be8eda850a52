# The program in a small image, as a user without rights, made of a release's tarball:
#
#   release/make.sh && docker build -t runner .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" runner run quickstart
#   docker run --rm --gpus all -v "$PWD:/work" --user "$(id -u):$(id -g)" runner doctor
#
# On Hopper in bf16 the driver, which NVIDIA's container toolkit mounts, is all that a GPU needs.
FROM debian:bookworm-slim AS unpacked
ADD target/release-files/runner-*-x86_64-unknown-linux-gnu.tar.gz /
RUN mv /runner-* /runner

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=unpacked /runner/bin/runner /usr/local/bin/runner
COPY --from=unpacked /runner/LICENSE /runner/crates.cdx.json /usr/local/share/doc/runner/
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
ENTRYPOINT ["/usr/local/bin/runner"]

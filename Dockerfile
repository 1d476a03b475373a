# The server of live streams and files, on CPUs.
#
#   docker build -t hf-speech-ssl .
#   docker run --read-only --tmpfs /tmp -p 8000:8000 -v $PWD/outputs/chunkssl-ctc:/model:ro hf-speech-ssl
#
# Options of `hf-speech-ssl serve` follow the name of the image, with the model before them:
#   docker run ... hf-speech-ssl /model --host 0.0.0.0 --max_streams 32
#
# Behind a mirror: docker build --build-arg TORCH_INDEX=URL, of an index with torch's CPU build.
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# ffmpeg reads what libsndfile cannot: m4a, webm and mp4.
RUN apt-get update && apt-get install --yes --no-install-recommends ffmpeg && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt torch --index-url $TORCH_INDEX
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[serve,vad]' && rm -rf /src/*
WORKDIR /
RUN useradd --system speech
USER speech
ENV HF_HUB_OFFLINE=1 HOME=/tmp
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["hf-speech-ssl", "serve"]
CMD ["/model", "--host", "0.0.0.0"]

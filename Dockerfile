# An environment that runs the two commands: make demo and make test.
#   docker build -t equitune . && docker run --rm equitune make demo
FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends make git && rm -rf /var/lib/apt/lists/*
WORKDIR /equitune
COPY . .
# Once, with everything: `make test` then installs nothing.
RUN make .venv/.dev .venv/.demo
CMD ["make", "test"]

# One image for every role; the command decides which.

FROM python:3.12-slim AS build
WORKDIR /build
RUN python -m venv /opt/rota
ENV PATH=/opt/rota/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# What changes rarely comes first: the dependencies are a layer of their own.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['invites'], *p['optional-dependencies']['mail'], *p['optional-dependencies']['web'], *p['optional-dependencies']['oidc'], sep='\n')" \
        > requirements.txt \
    && pip install -r requirements.txt -c constraints.txt
COPY README.md LICENSE ./
COPY core core
COPY plugins plugins
RUN pip install --no-deps . ./plugins/customer_service ./plugins/expiry ./plugins/invites ./plugins/mail ./plugins/maintenance \
    && pip uninstall --yes pip

FROM python:3.12-slim
RUN useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin rota
COPY --from=build /opt/rota /opt/rota
ENV PATH=/opt/rota/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /opt/rota
USER rota
EXPOSE 9190 9191
CMD ["rota", "worker"]

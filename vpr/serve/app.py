"""The server's routes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from time import perf_counter
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import StringConstraints
from starlette.exceptions import HTTPException
from starlette.routing import Match

from vpr.common.progress import say
from vpr.report.html import rendered
from vpr.retrieval.ask import Ask
from vpr.retrieval.locator import Locator
from vpr.serve import schemas
from vpr.serve.guard import OPEN, SECURITY_HEADERS, VERSION, Guard, client_of
from vpr.serve.image_routes import image_routes
from vpr.serve.page import DOCS, page_routes
from vpr.serve.problems import Problem, wrong
from vpr.serve.service import Service
from vpr.serve.settings import Settings
from vpr.serve.uploads import while_there

MOST_MATCHES, DEEPEST = 1000, 200  # matches of an answer, and hits that are re-ranked
TITLE, ABOUT = "Where was this image taken?", "Finds the images of a database that show the same place."
SESSION = "A camera's name: its frames come in order, and each is searched by those before it."
ShortText = Annotated[str, StringConstraints(max_length=200)]
BODY = schemas.body_of({"image": schemas.BINARY})
SEVERAL = schemas.body_of({"image": {"type": "array", "items": schemas.BINARY}}, raw=False)
LOCATE_ERRORS = schemas.errors(400, 401, 403, 408, 413, 415, 422, 429, 503)


def make_app(locator: Locator, settings: Settings) -> FastAPI:
    """The server as an ASGI application; its processes and threads live as long as its lifespan.
    Raises a UserError where the settings are not safe."""
    settings.require_safe()
    service = Service(locator, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.stop)

    # FastAPI's own pages of documentation load their scripts from elsewhere.
    app = FastAPI(
        title=TITLE, description=ABOUT, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name, servers=[{"url": VERSION}],
    )  # fmt: skip
    app.add_middleware(Guard, settings=settings, metrics=service.metrics)
    _add_problems(app)
    _locate_routes(app, service)
    image_routes(app, service)
    page_routes(app, settings.tiles)
    _health_routes(app, service)
    if settings.token:
        _describe_token(app)
    return app


def _describe_token(app: FastAPI) -> None:
    """Add to the description what `Guard` wants."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        api = describe()
        api.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path in api["paths"].keys() - OPEN:
            for operation in api["paths"][path].values():
                operation["security"] = [{"token": []}]
        return api

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _locate_routes(app: FastAPI, service: Service) -> None:
    async def asked(
        top: Annotated[int, Query(ge=1, le=MOST_MATCHES, description="How many matches.")] = 5,
        near: Annotated[ShortText | None, Query(description="Search around LATITUDE,LONGITUDE,METRES.")] = None,
        box: Annotated[ShortText | None, Query(description="Search in SOUTH,WEST,NORTH,EAST, degrees.")] = None,
        where: Annotated[list[ShortText], Query(max_length=8, description="Search images with COLUMN=VALUE.")] = [],  # noqa: B006
        rerank: Annotated[int | None, Query(ge=0, le=DEEPEST, description="Hits that are re-ranked.")] = None,
        agreement: Annotated[bool, Query(description="Points that agree with the first match.")] = False,
    ) -> Ask:
        wanted = schemas.search_filter(near, box, where, service.locator.records)
        return replace(service.locator.usual, top=top, filter=wanted, rerank=rerank, agreement=agreement)

    Question = Annotated[Ask, Depends(asked)]

    async def answers(request: Request, question: Ask, most: int) -> list[Any]:
        """The answer to each image of a request of at most so many, or an error."""
        began, client = perf_counter(), client_of(request.scope)
        async with service.bodies.form(request, most) as form:
            is_long = service.locator.is_long(question)
            with service.batcher.slots(len(form.images), client if is_long else None) as slots:
                located = [service.locate(image, question, slots, client, began) for image in form.images]
                return await while_there(request, asyncio.gather(*located, return_exceptions=True))

    @app.post("/locate", openapi_extra=BODY, response_model=schemas.Located, responses=LOCATE_ERRORS)
    async def locate(
        request: Request,
        question: Question,
        session: Annotated[str | None, Query(min_length=1, max_length=200, description=SESSION)] = None,
    ) -> Response:
        """Where was this image taken? Send it as the body, or as the part image of a form."""
        async with service.sessions.turn(session) as own:
            (answer,) = await answers(request, replace(question, session=own), 1)
        if isinstance(answer, BaseException):
            raise answer
        return JSONResponse(answer)

    @app.post("/locate/batch", openapi_extra=SEVERAL, response_model=schemas.LocatedBatch, responses=LOCATE_ERRORS)
    async def locate_batch(request: Request, question: Question) -> Response:
        """Where were these images taken? Send them as parts of a form; answers come in their order."""
        found = await answers(request, question, service.settings.batch_requests)
        return JSONResponse({"answers": list(map(schemas.one_of_several, found))})


def _health_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses=schemas.errors(403))
    async def health() -> schemas.Health:
        """Whether the server runs."""
        return schemas.Health(status="ok")

    @app.get("/ready", responses=schemas.errors(403, 503))
    async def ready() -> schemas.Ready:
        """Whether it answers; 503 while it starts and ends, and while the search engine does not answer."""
        await service.require_ready()
        return schemas.Ready(status="ready", images=service.locator.images)

    @app.get("/metrics", response_class=PlainTextResponse, response_description="Counters by name.",
                responses=schemas.errors(401, 403, 429))  # fmt: skip
    async def metrics() -> Response:
        """What was counted, in Prometheus's text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(rendered(DOCS, api=app.openapi()))


def _add_problems(app: FastAPI) -> None:
    """Every error as one sentence of JSON, with nothing of the server in it."""

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return wrong(error.errors(), 1).response()  # behind `query`

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        texts = {404: "there is nothing at this address", 405: "this address does not take this method"}
        text = texts.get(error.status_code, "the request cannot be answered")
        response = Problem(error.status_code, text).response()
        if error.status_code == 405:
            alike = [route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE]
            methods = set().union(*(getattr(route, "methods", None) or () for route in alike))
            response.headers["allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        return response

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        say(f"{request.method} failed: {type(error).__name__}: {error}")
        response = Problem(500, "the server failed at this; its log says why").response()
        response.headers.update(SECURITY_HEADERS)
        return response

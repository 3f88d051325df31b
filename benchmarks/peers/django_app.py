"""django-eventstream in one ASGI process, without Redis and without storage."""

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="for a benchmark",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django_eventstream"],
    MIDDLEWARE=[],
    LOGGING_CONFIG=None,
)
django.setup()

import django_eventstream  # noqa: E402 - needs the settings
from asgiref.sync import sync_to_async  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.http import HttpRequest, HttpResponse  # noqa: E402
from django.urls import include, path  # noqa: E402


async def emit(request: HttpRequest) -> HttpResponse:
    for _ in range(int(request.GET["n"])):
        await sync_to_async(django_eventstream.send_event)(
            "bench", "tick", {"mark": "~", "pad": "x" * 185}
        )
    return HttpResponse()


urlpatterns = [
    path("stream", include(django_eventstream.urls), {"channels": ["bench"]}),
    path("emit", emit),
]
app = get_asgi_application()

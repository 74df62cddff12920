// The API's own page: Swagger UI, served from here.
"use strict";

SwaggerUIBundle({ url: "openapi.json", dom_id: "#api", deepLinking: false, validatorUrl: null });

// API documentation: Swagger UI, served locally.
"use strict";

SwaggerUIBundle({ url: "openapi.json", dom_id: "#api", deepLinking: false, validatorUrl: null });

<?php

// Every address that is no file comes here.
require __DIR__ . '/../vendor/autoload.php';

header('Content-Type: text/plain; charset=utf-8');
$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);
if ($path === '/health') {
    echo "ok\n";
} elseif ($path === '/') {
    echo Hello\Greeting::text();
} else {
    http_response_code(404);
    echo "not found\n";
}

<?php

namespace Hello;

final class Greeting
{
    public static function text(): string
    {
        return (getenv('GREETING') ?: 'Hello from Berth!') . ' This is PHP ' . PHP_VERSION . ".\n";
    }
}

"""Java: Maven, Gradle by its wrapper, or sources without either. PURE."""

import re

from builder.image_builder import StepFailed
from builder.recipes.case import Case, Detector, Recipe, Source, first_version, same_version
from builder.recipes.rendering import (
    build_stage,
    copy,
    copy_source,
    finished,
    run,
    run_stage,
    runs,
)

_GRADLE = ("build.gradle", "build.gradle.kts")
_SETTINGS = ("settings.gradle", "settings.gradle.kts", "gradle.properties")
_MAIN = ("Main.java", "src/Main.java", "src/main/java/Main.java", "App.java", "src/App.java")
_ASKED = re.compile(r"^java\.runtime\.version\s*=\s*(?:1\.)?(\d+)", re.MULTILINE)
# What the tools need to trust a proxy's certificates is a store of Java's own, made of the same file.
_STORE = "/run/berth/trust.p12"
_TRUST = b"""\
import java.io.*;
import java.security.KeyStore;
import java.security.cert.*;

public class Trust {
    public static void main(String[] paths) throws Exception {
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        int number = 0;
        try (InputStream in = new FileInputStream(paths[0])) {
            for (Certificate one : CertificateFactory.getInstance("X.509").generateCertificates(in)) {
                store.setCertificateEntry("ca" + number++, one);
            }
        }
        try (OutputStream out = new FileOutputStream(paths[1])) {
            store.store(out, "berth-trust".toCharArray());
        }
    }
}
"""


def _found(case: Case) -> bool:
    return bool(case.source.of("pom.xml", *_GRADLE, *_MAIN))


def _recipe(case: Case) -> Recipe:
    source = case.source
    found = _ASKED.search(source.text("system.properties"))
    asked = found[1] if found else first_version(source.text(".java-version"))
    preset = case.preset("java", "Java", (lambda version: same_version(asked, version)) if asked else None)
    build = build_stage(case, preset)
    added: dict[str, bytes] = {}
    if case.ca_bundle is not None:
        added["Trust.java"] = _TRUST
        options = f"-Djavax.net.ssl.trustStore={_STORE} -Djavax.net.ssl.trustStorePassword=berth-trust"
        build += [
            "COPY Trust.java /run/berth/Trust.java",
            run(f"java /run/berth/Trust.java /run/berth/ca.pem {_STORE}"),
            f'ENV JAVA_TOOL_OPTIONS="{options}"',
        ]
    install, built = case.install_command(preset, None), case.build_command(preset)
    if "pom.xml" in source.names:
        words, jars = "pom.xml: Java with Maven", "target"
        build += _maven(source, install, built)
    elif source.of(*_GRADLE):
        words, jars = f"{source.first(*_GRADLE)}: Java with Gradle", "build/libs"
        build += _gradle(source, install, built)
    else:
        words, jars = f"{source.first(*_MAIN)}: Java without a build tool", ""
        build += _plain(source, install, built)
    processes = case.started(preset, _start(source, jars), "java -jar target/app.jar")
    running = run_stage(preset.image, "JAVA_OPTS=-XX:MaxRAMPercentage=75", processes["web"])
    running += ["COPY --from=build /app ./"]
    return finished(
        case,
        preset,
        (build, running),
        processes,
        (f"Found {words}, built with the runtime {preset.name}.",),
        added=added,
        unwanted=("target", ".gradle") if jars == "target" else (".gradle",),
    )


def _maven(source: Source, install: str | None, built: str | None) -> list[str]:
    wrapper = "mvnw" in source.names
    maven = "sh ./mvnw" if wrapper else "mvn"
    lines = ["ENV MAVEN_OPTS=-Dmaven.repo.local=/opt/maven"]
    text = source.text("pom.xml")
    several = "<modules>" in text or "<relativePath>" in text
    if install or several:
        lines += [copy_source(), *runs((install,))]
    else:
        lines += copy(source.of("pom.xml", "mvnw"))
        lines += ["COPY source/.mvn ./.mvn"] if source.below(".mvn") else []
        # What cannot be had before the source is there, is fetched with it.
        lines += [run(f"{maven} --batch-mode --quiet dependency:go-offline || true"), copy_source()]
    return [*lines, run(built or f"{maven} --batch-mode --no-transfer-progress -DskipTests package")]


def _gradle(source: Source, install: str | None, built: str | None) -> list[str]:
    wrapper = source.of("gradlew", "gradle/wrapper/gradle-wrapper.properties")
    if len(wrapper) < 2 and not built:
        raise StepFailed(
            "recipe",
            f"{source.first(*_GRADLE)} has no wrapper beside it; looked for gradlew and "
            "gradle/wrapper/gradle-wrapper.properties",
            hint="Make it with `gradle wrapper` and add its files: they say which Gradle the app needs.",
        )
    lines = ["ENV GRADLE_USER_HOME=/opt/gradle GRADLE_OPTS=-Dorg.gradle.daemon=false"]
    if install:
        return [*lines, copy_source(), run(install), run(built or "sh ./gradlew build -x test")]
    if wrapper:
        lines += [*copy(source.of("gradlew")), "COPY source/gradle ./gradle"]
        lines += copy(source.of(*_GRADLE, *_SETTINGS))
        lines += [run("sh ./gradlew --console=plain dependencies || true")]
    built = built or "sh ./gradlew --console=plain build -x test && rm -f build/libs/*-plain.jar"
    return [*lines, copy_source(), run(built)]


def _plain(source: Source, install: str | None, built: str | None) -> list[str]:
    folder = _folder(source)
    compiled = f"find {folder} -name '*.java' > /tmp/sources && javac -d classes @/tmp/sources"
    return [copy_source(), *runs((install, built or compiled))]


def _folder(source: Source) -> str:
    main = source.first(*_MAIN) or "Main.java"
    return main.rpartition("/")[0] or "."


def _start(source: Source, jars: str) -> str:
    if jars:
        # One jar: what a framework adds beside it has been left out.
        return f"exec java $JAVA_OPTS -Dserver.port=$PORT -jar {jars}/*.jar"
    name = (source.first(*_MAIN) or "Main.java").rpartition("/")[2].removesuffix(".java")
    return f"exec java $JAVA_OPTS -cp classes {name}"


JAVA = Detector(
    name="java",
    looks_for="pom.xml, build.gradle, build.gradle.kts or Main.java (Java)",
    reads=("pom.xml", "system.properties", ".java-version"),
    named=lambda case: case.names_runtime("java"),
    found=_found,
    recipe=_recipe,
)

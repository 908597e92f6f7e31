# The job manager, the task managers and the job server: Flink with Beam's jars in its lib.
# Build from the repository's root:
#   docker build -f deploy/flink/flink.Dockerfile -t REGISTRY/beamtag-flink:0.1.0 .
FROM maven:3.9-eclipse-temurin-17 AS jars
COPY deploy/flink/pom.xml .
RUN mvn -B -q dependency:copy-dependencies -DoutputDirectory=/jars

FROM flink:1.19.3-java17
COPY --from=jars /jars/ /opt/flink/lib/
